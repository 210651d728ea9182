"""How it is computed: our variants and the baselines they are measured against, as one type (`kernels.kernel.Kernel`)."""

{
  const link = document.getElementById("csv");
  if (link && window.DecompressionStream) {
    link.textContent = "Download every result as CSV";
    link.addEventListener("click", async (event) => {
      event.preventDefault();
      const packed = Uint8Array.from(atob(link.href.split(",", 2)[1]), (letter) => letter.charCodeAt(0));
      const plain = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
      const made = document.createElement("a");
      made.href = URL.createObjectURL(new Blob([plain], {type: "text/csv"}));
      made.download = link.download.replace(/\.gz$/, "");
      made.click();
      setTimeout(() => URL.revokeObjectURL(made.href), 10000);
    });
  }
}

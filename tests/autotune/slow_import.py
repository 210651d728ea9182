"""Takes a while to import, as torch does: until there is a file that an environment variable names."""

import os
import time

WAITS_FOR = "TERSPARSE_TEST_IMPORT"

while WAITS_FOR in os.environ and not os.path.exists(os.environ[WAITS_FOR]):
    time.sleep(0.02)

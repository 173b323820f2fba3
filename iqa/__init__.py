"""Tools that know no trained run, in rooms. Whatever uses the project imports this before torch."""

import os

# OpenMP's threads spin while they wait for each other. Beside another busy process they spin away the time that the
# thread they wait for needs: 324 small images took 488 s instead of 22 s. Read when torch loads libgomp.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"

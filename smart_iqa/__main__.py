"""`python -m smart_iqa NAME ...` is `smart-iqa NAME ...`."""

from smart_iqa.commands import main

main()

"""Messages and services of shared/wire/enrol.proto: generated, see generate.py."""

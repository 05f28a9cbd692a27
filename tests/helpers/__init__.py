"""Networks, data sets, configs and runs that several tests share."""

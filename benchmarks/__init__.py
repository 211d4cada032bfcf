"""calcdl beside its peers: the same studies, with the same recordings, by five routes. Run by hand or `make bench`."""

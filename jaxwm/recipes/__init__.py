"""One flat file per system; each exports `Config`, a builder and `experiment`."""

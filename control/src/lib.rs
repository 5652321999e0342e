//! Culvert command line as a library.

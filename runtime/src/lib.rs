//! Runs executable graphs.

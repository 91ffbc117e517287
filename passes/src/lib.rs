//! Module to module, one file per pass.

//! `.model` text to typed modules to IR.

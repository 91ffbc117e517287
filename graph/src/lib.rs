//! The executable graph, `NAME.weft`.

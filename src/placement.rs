//! Where the copies of experts are, as `weft eplb --json` says.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// For each layer the expert at each place: its map alone, or beside those that follow from it.
pub fn read(path: &Path) -> Result<Vec<Vec<u64>>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let expected = || {
        format!(
            "{shown}: expected what `weft eplb --json` writes: for each layer the expert at \
                 each place"
        )
    };
    let layers: Vec<Value> = serde_json::from_str(&text).with_context(expected)?;
    let line = |layer: &Value| -> Option<Vec<u64>> {
        let line = layer.get("physical_to_logical").unwrap_or(layer);
        line.as_array()?.iter().map(Value::as_u64).collect()
    };
    layers.iter().map(|layer| line(layer).with_context(expected)).collect()
}

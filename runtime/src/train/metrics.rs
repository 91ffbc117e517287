//! The metrics of a run: one JSON object a line, one line a step, each on disk when it is written.
//!
//! A resumed run drops the lines after the checkpoint it continues from, so that the file of a run
//! that was killed has every step once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("cannot {action} the metrics file {}: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },

    #[error("{}, line {line}: expected an object with `step`, found `{found}`: {reason}",
            path.display())]
    Line { path: PathBuf, line: usize, found: String, reason: String },
}

/// What one step measured; a metric taken at intervals is missing between.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub step: u64,
    #[serde(flatten)]
    pub values: IndexMap<String, Value>,
}

impl Record {
    pub fn new(step: u64) -> Self {
        Self { step, values: IndexMap::new() }
    }

    /// Adds a number. JSON has no NaN or infinity: those are written as null.
    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.values.insert(name.to_owned(), Value::from(value));
        self
    }

    /// Adds a count.
    pub fn with_count(mut self, name: &str, value: u64) -> Self {
        self.values.insert(name.to_owned(), Value::from(value));
        self
    }

    /// Adds one number per layer.
    pub fn with_layers(mut self, name: &str, values: &[f64]) -> Self {
        self.values.insert(name.to_owned(), Value::from(values));
        self
    }

    /// A number, if the step has it.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.values.get(name)?.as_f64()
    }

    /// The numbers of the layers, if the step has them.
    pub fn layers(&self, name: &str) -> Option<Vec<f64>> {
        self.values.get(name)?.as_array()?.iter().map(Value::as_f64).collect()
    }
}

/// Appends records to a file.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// Starts an empty file, replacing one that is there.
    pub fn create(path: &Path) -> Result<Self, MetricsError> {
        let file = File::create(path).map_err(MetricsError::io("create", path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Continues a file after `step`: later lines, and a last line cut short, are dropped. A file
    /// that is not there is started.
    pub fn resume(path: &Path, step: u64) -> Result<Self, MetricsError> {
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(path);
        let file = file.map_err(MetricsError::io("open", path))?;
        let n_bytes = bytes_until(path, step)?;
        file.set_len(n_bytes).map_err(MetricsError::io("shorten", path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes one line, in one call, so that a kill leaves it whole or cut at the end of the file.
    pub fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        let failed = MetricsError::io("write", &self.path);
        let line = match serde_json::to_string(record) {
            Ok(line) => line + "\n",
            Err(error) => return Err(failed(error.into())),
        };
        self.file.write_all(line.as_bytes()).map_err(failed)
    }
}

/// Reads the records of a file. A last line without its end, which a kill leaves, is passed over.
pub fn read(path: &Path) -> Result<Vec<Record>, MetricsError> {
    let text = fs::read_to_string(path).map_err(MetricsError::io("read", path))?;
    let mut records = Vec::new();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if line.ends_with('\n') {
            records.push(parse(path, i + 1, line)?);
        }
    }
    Ok(records)
}

/// The length of the part of the file that holds whole lines of steps up to `step`.
fn bytes_until(path: &Path, step: u64) -> Result<u64, MetricsError> {
    let file = File::open(path).map_err(MetricsError::io("read", path))?;
    let mut reader = BufReader::new(file);
    let mut n_bytes = 0;
    for i in 1.. {
        let mut line = Vec::new();
        let n = reader.read_until(b'\n', &mut line).map_err(MetricsError::io("read", path))?;
        if !line.ends_with(b"\n") || parse(path, i, &String::from_utf8_lossy(&line))?.step > step {
            break;
        }
        n_bytes += n as u64;
    }
    Ok(n_bytes)
}

fn parse(path: &Path, line: usize, text: &str) -> Result<Record, MetricsError> {
    serde_json::from_str(text).map_err(|e| MetricsError::Line {
        path: path.to_owned(),
        line,
        found: text.trim_end().chars().take(40).collect(),
        reason: e.to_string(),
    })
}

impl MetricsError {
    fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Io { action, path: path.to_owned(), error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> Record {
        Record::new(step).with("loss", 0.1 * step as f64).with_layers("max_vio", &[1.0, 0.5])
    }

    fn steps(path: &Path) -> Vec<u64> {
        read(path).unwrap().iter().map(|r| r.step).collect()
    }

    fn file_of(steps: &[u64]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::create(&path).unwrap();
        for &step in steps {
            writer.write(&record(step)).unwrap();
        }
        (dir, path)
    }

    #[test]
    fn a_record_is_one_line_and_comes_back() {
        let (_dir, path) = file_of(&[3]);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\":3,\"loss\":0.30000000000000004,\"max_vio\":[1.0,0.5]}\n");
        let records = read(&path).unwrap();
        assert_eq!(records, [record(3)]);
        assert_eq!(records[0].number("loss"), Some(0.1 * 3.0));
        assert_eq!(records[0].layers("max_vio"), Some(vec![1.0, 0.5]));
        assert_eq!(records[0].number("held_out_loss"), None);
    }

    #[test]
    fn a_resumed_file_equals_an_undisturbed_one() {
        let (_a, killed) = file_of(&[1, 2, 3, 4, 5]);
        let (_b, whole) = file_of(&[1, 2, 3, 4, 5, 6]);
        // Killed while it wrote step 6, resumed from the checkpoint of step 3.
        OpenOptions::new().append(true).open(&killed).unwrap().write_all(b"{\"step\":6,").unwrap();
        assert_eq!(steps(&killed), [1, 2, 3, 4, 5]);
        let mut writer = MetricsWriter::resume(&killed, 3).unwrap();
        for step in 4..=6 {
            writer.write(&record(step)).unwrap();
        }
        assert_eq!(fs::read(&killed).unwrap(), fs::read(&whole).unwrap());
    }

    #[test]
    fn a_line_is_on_disk_as_soon_as_it_is_written() {
        let (_dir, path) = file_of(&[]);
        let mut writer = MetricsWriter::resume(&path, 0).unwrap();
        writer.write(&record(1)).unwrap();
        assert_eq!(steps(&path), [1]);
    }

    #[test]
    fn resuming_starts_a_file_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        MetricsWriter::resume(&path, 7).unwrap().write(&record(8)).unwrap();
        assert_eq!(steps(&path), [8]);
    }

    #[test]
    fn a_number_that_is_none_is_missing() {
        let (_dir, path) = file_of(&[]);
        let mut writer = MetricsWriter::resume(&path, 0).unwrap();
        writer.write(&Record::new(1).with("loss", f64::NAN)).unwrap();
        assert_eq!(read(&path).unwrap()[0].number("loss"), None);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let (_dir, path) = file_of(&[1]);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"loss 3\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(
            error.contains("line 2: expected an object with `step`, found `loss 3`"),
            "{error}"
        );
    }
}

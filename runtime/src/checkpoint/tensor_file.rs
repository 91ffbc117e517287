//! One safetensors file: mapped for reading, written whole.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::{CheckpointError, Dtype, TensorInfo, fp8};

/// A file mapped into memory; a tensor is read from disk when it is asked for.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    /// By name: what the header declares, and the range of its bytes in the file.
    tensors: BTreeMap<String, (TensorInfo, std::ops::Range<usize>)>,
}

impl TensorFile {
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(CheckpointError::io("open", path))?;
        // SAFETY: the map is read-only and lives as long as `self`. Another process that shortens
        // the file meanwhile can end this one; training never rewrites a file under its name.
        let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::io("read", path))?;
        let bad = |e: safetensors::SafeTensorError| CheckpointError::Safetensors {
            path: path.to_owned(),
            reason: e.to_string(),
        };
        let (n_header, metadata) = SafeTensors::read_metadata(&map).map_err(bad)?;
        // The length of the header stands before it, in 8 bytes.
        let data_start = 8 + n_header;
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let shape = info.shape.iter().map(|&n| n as u64).collect();
            let range = data_start + start..data_start + end;
            let info = TensorInfo { name: name.clone(), dtype: info.dtype, shape };
            tensors.insert(name, (info, range));
        }
        Ok(Self { path: path.to_owned(), map, tensors })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// In order of name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values().map(|(info, _)| info)
    }

    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|(info, _)| info)
    }

    /// What the header declares for `name` and its bytes as stored, little endian.
    pub fn tensor(&self, name: &str) -> Result<(&TensorInfo, &[u8]), CheckpointError> {
        match self.tensors.get(name) {
            Some((info, range)) => Ok((info, &self.map[range.clone()])),
            None => {
                Err(CheckpointError::NoTensor { path: self.path.clone(), tensor: name.to_owned() })
            }
        }
    }

    /// The bytes of a tensor that must be of this type and shape.
    pub fn bytes(&self, name: &str, dtype: Dtype, shape: &[u64]) -> Result<&[u8], CheckpointError> {
        let (info, bytes) = self.tensor(name)?;
        if info.dtype != dtype || info.shape != shape {
            let expected = TensorInfo { name: String::new(), dtype, shape: shape.to_vec() };
            return Err(self.wrong(name, expected.to_string(), info.to_string()));
        }
        Ok(bytes)
    }

    /// The numbers of an f32, bf16 or f16 tensor of this shape.
    pub fn read_f32(&self, name: &str, shape: &[u64]) -> Result<Vec<f32>, CheckpointError> {
        let mut out = vec![0.0; self.checked(name, shape)?.n_elements() as usize];
        self.read_f32_into(name, shape, &mut out)?;
        Ok(out)
    }

    /// As [`Self::read_f32`], into `out`, which has as many elements as `shape`.
    pub fn read_f32_into(
        &self,
        name: &str,
        shape: &[u64],
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let info = self.checked(name, shape)?;
        assert_eq!(out.len() as u64, info.n_elements(), "the buffer of {name}");
        let (_, bytes) = self.tensor(name)?;
        match info.dtype {
            Dtype::F32 => decode(bytes, out, f32::from_le_bytes),
            Dtype::BF16 => decode(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => decode(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            other => return Err(self.wrong(name, "F32, BF16 or F16", other)),
        }
        Ok(())
    }

    /// The value of an e4m3 tensor `[rows, columns]` whose scales are `scales`, one per block.
    pub fn dequantize_into(
        &self,
        name: &str,
        shape: [u64; 2],
        scales: &[f32],
        block: [u64; 2],
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let codes = self.bytes(name, Dtype::F8_E4M3, &shape)?;
        assert_eq!(out.len(), codes.len(), "the buffer of {name}");
        fp8::dequantize(codes, scales, shape[1], block, out);
        Ok(())
    }

    /// The numbers of an integer tensor, which must fit i32; its shape is in [`Self::info`].
    pub fn read_i32(&self, name: &str) -> Result<Vec<i32>, CheckpointError> {
        let (info, bytes) = self.tensor(name)?;
        let wide: Vec<i64> = match info.dtype {
            Dtype::I64 => integers(bytes, i64::from_le_bytes),
            Dtype::I32 => integers(bytes, |b| i64::from(i32::from_le_bytes(b))),
            Dtype::U8 => integers(bytes, |[b]| i64::from(b)),
            other => return Err(self.wrong(name, "I64, I32 or U8", other)),
        };
        let narrow =
            |x: i64| i32::try_from(x).map_err(|_| self.wrong(name, "numbers of 32 bits", x));
        wide.into_iter().map(narrow).collect()
    }

    fn checked(&self, name: &str, shape: &[u64]) -> Result<&TensorInfo, CheckpointError> {
        let (info, _) = self.tensor(name)?;
        if info.shape != shape {
            return Err(self.wrong(name, format!("{shape:?}"), format!("{:?}", info.shape)));
        }
        Ok(info)
    }

    pub(super) fn wrong(
        &self,
        tensor: &str,
        expected: impl ToString,
        found: impl ToString,
    ) -> CheckpointError {
        CheckpointError::Tensor {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

fn decode<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) {
    for (x, chunk) in out.iter_mut().zip(bytes.as_chunks().0) {
        *x = f(*chunk);
    }
}

fn integers<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> i64) -> Vec<i64> {
    bytes.as_chunks().0.iter().map(|chunk| f(*chunk)).collect()
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct NewTensor<'a> {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    /// Little endian, as many bytes as type and shape say.
    pub data: Cow<'a, [u8]>,
}

impl<'a> NewTensor<'a> {
    pub fn new(name: &str, dtype: Dtype, shape: &[u64], data: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), data: data.into() }
    }

    /// An f32 tensor, without a copy.
    pub fn f32(name: &str, shape: &[u64], data: &'a [f32]) -> Self {
        const { assert!(cfg!(target_endian = "little"), "the file format is little endian") };
        // SAFETY: any f32 is four initialised bytes, u8 needs no alignment, and the bytes are
        // borrowed for as long as the floats.
        let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) };
        Self::new(name, Dtype::F32, shape, bytes)
    }

    pub fn i64(name: &str, shape: &[u64], data: &[i64]) -> Self {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::new(name, Dtype::I64, shape, bytes)
    }
}

/// Writes a safetensors file. It is complete when this returns, and on disk once it is synced.
pub fn write_tensors(path: &Path, tensors: &[NewTensor<'_>]) -> Result<(), CheckpointError> {
    let wrong = |tensor: &NewTensor<'_>, e: safetensors::SafeTensorError| CheckpointError::Tensor {
        path: path.to_owned(),
        tensor: tensor.name.clone(),
        expected: format!("the bytes of {} {:?}", tensor.dtype, tensor.shape),
        found: format!("{} bytes ({e})", tensor.data.len()),
    };
    let mut views = BTreeMap::new();
    for tensor in tensors {
        let shape = tensor.shape.iter().map(|&n| n as usize).collect();
        let view =
            TensorView::new(tensor.dtype, shape, &tensor.data).map_err(|e| wrong(tensor, e))?;
        if views.insert(tensor.name.as_str(), view).is_some() {
            return Err(CheckpointError::Tensor {
                path: path.to_owned(),
                tensor: tensor.name.clone(),
                expected: "one tensor of that name".to_owned(),
                found: "two".to_owned(),
            });
        }
    }
    // What transformers asks of a checkpoint's header.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|e| {
        CheckpointError::Io {
            action: "write",
            path: path.to_owned(),
            error: std::io::Error::other(e.to_string()),
        }
    })?;
    // The crate writes through a private temporary file, whose mode would stay.
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
        .map_err(CheckpointError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(tensors: &[NewTensor<'_>]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.safetensors");
        write_tensors(&path, tensors).unwrap();
        (dir, path)
    }

    #[test]
    fn every_float_type_reads_as_f32() {
        let bf16: Vec<u8> =
            [1.5f32, -2.0].iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        let f16: Vec<u8> =
            [0.25f32, 65504.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let (_dir, path) = file(&[
            NewTensor::f32("a", &[2, 1], &[1e-30, -3.0]),
            NewTensor::new("b", Dtype::BF16, &[2], bf16),
            NewTensor::new("c", Dtype::F16, &[2], f16),
        ]);
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.tensors().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(file.read_f32("a", &[2, 1]).unwrap(), [1e-30, -3.0]);
        assert_eq!(file.read_f32("b", &[2]).unwrap(), [1.5, -2.0]);
        assert_eq!(file.read_f32("c", &[2]).unwrap(), [0.25, 65504.0]);
    }

    #[test]
    fn integers_are_checked_against_their_range() {
        let (_dir, path) = file(&[
            NewTensor::i64("ids", &[3], &[0, -1, 129_279]),
            NewTensor::i64("big", &[1], &[1 << 40]),
        ]);
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.read_i32("ids").unwrap(), [0, -1, 129_279]);
        let error = file.read_i32("big").unwrap_err().to_string();
        assert!(
            error.contains("`big`: expected numbers of 32 bits, found 1099511627776"),
            "{error}"
        );
    }

    #[test]
    fn a_wrong_request_names_file_tensor_expected_and_found() {
        let (_dir, path) =
            file(&[NewTensor::f32("w", &[2], &[1.0, 2.0]), NewTensor::i64("i", &[1], &[1])]);
        let file = TensorFile::open(&path).unwrap();
        let at = path.display();
        let message = |e: CheckpointError| e.to_string();
        assert_eq!(
            message(file.read_f32("w", &[3]).unwrap_err()),
            format!("{at}: tensor `w`: expected [3], found [2]")
        );
        assert_eq!(
            message(file.read_f32("i", &[1]).unwrap_err()),
            format!("{at}: tensor `i`: expected F32, BF16 or F16, found I64")
        );
        assert_eq!(
            message(file.bytes("w", Dtype::BF16, &[2]).unwrap_err()),
            format!("{at}: tensor `w`: expected BF16 [2], found F32 [2]")
        );
        assert_eq!(
            message(file.read_f32("v", &[2]).unwrap_err()),
            format!("{at}: expected tensor `v`, found none of that name")
        );
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let (_dir, path) = file(&[NewTensor::f32("w", &[2], &[1.0, 2.0])]);
        let whole = fs::read(&path).unwrap();
        for n in 0..whole.len() {
            fs::write(&path, &whole[..n]).unwrap();
            let error = TensorFile::open(&path).unwrap_err().to_string();
            assert!(error.contains("is not a whole safetensors file"), "{n} bytes: {error}");
        }
    }

    #[test]
    fn no_altered_byte_of_the_header_panics() {
        let codes: &[u8] = &[0x38; 6];
        let e4m3 = NewTensor::new("q", Dtype::F8_E4M3, &[2, 3], codes);
        let (_dir, path) = file(&[NewTensor::f32("w", &[2], &[1.0, 2.0]), e4m3]);
        let whole = fs::read(&path).unwrap();
        let (mut n_refused, mut n_opened) = (0, 0);
        for at in 0..whole.len() - 14 {
            for to in [b'0', b'9', b'"', b']', 0, 0xff, whole[at] ^ 1] {
                let mut altered = whole.clone();
                altered[at] = to;
                fs::write(&path, altered).unwrap();
                let Ok(file) = TensorFile::open(&path) else {
                    n_refused += 1;
                    continue;
                };
                n_opened += 1;
                for info in file.tensors() {
                    assert!(file.tensor(&info.name).unwrap().1.len() <= 14);
                    let read = file.read_f32(&info.name, &info.shape);
                    assert!(read.is_ok() || !matches!(info.dtype, Dtype::F32));
                }
            }
        }
        // Some alterations only rename a tensor; most break the header.
        assert!(n_refused > n_opened && n_opened > 0, "{n_refused} refused, {n_opened} opened");
    }

    #[test]
    fn data_that_does_not_match_its_shape_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let error = write_tensors(&path, &[NewTensor::f32("w", &[3], &[1.0])]).unwrap_err();
        assert!(
            error.to_string().contains("expected the bytes of F32 [3], found 4 bytes"),
            "{error}"
        );
        assert!(!path.exists());
    }
}

//! How a weight buffer is stored: one buffer of stacked layers and experts, many named tensors.
//!
//! A buffer `[58, 256, out, in]` with template `model.layers.{i}.mlp.experts.{j}.up_proj.weight`
//! and starts `[3, 0]` is stored as 58 * 256 tensors `[out, in]`, from
//! `model.layers.3.mlp.experts.0.up_proj.weight` on. Stacked dims come first; the placeholders
//! stand for them in order of first appearance.

use serde::{Deserialize, Serialize};

use crate::DType;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightInfo {
    pub template: String,
    /// The number written for index 0 of each stacked dim.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub starts: Vec<u32>,
    /// Further templates the same values are stored under (a shared embedding).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub duplicates: Vec<String>,
    pub init: Init,
    /// Receives a gradient.
    pub trained: bool,
    /// The buffer holds not the tensors' values but a part of their quantized form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coded: Option<Coded>,
    /// The buffer holds a part of the tensors; other ranks hold the others. One for each dim that
    /// is divided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cuts: Vec<Cut>,
}

/// How ranks divide a buffer: evenly along one dim, by place on a mesh axis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    pub axis: String,
    /// Places along the axis, and how far apart neighbours' ranks are.
    pub parts: u32,
    pub stride: u32,
    /// Of the buffer; a stacked dim counts tensors.
    pub dim: u32,
}

impl Cut {
    /// Which part is a rank's.
    pub fn place(&self, rank: usize) -> usize {
        rank / self.stride as usize % self.parts as usize
    }
}

/// Which part of quantized matrices a buffer holds, and how they are quantized: of each block of
/// `group` elements the scale is amax / the largest code, and a code is value / scale, rounded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coded {
    pub part: Part,
    /// The element type of the codes.
    pub codes: DType,
    /// f32, or ue8m0 for the power of two from amax / the largest code up.
    pub scale: DType,
    pub group: [u32; 2],
    /// Of a stored tensor.
    pub dims: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Codes,
    Scales,
}

/// What a weight holds before training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    Constant(f64),
    /// From a normal distribution, keyed by the stored name.
    Drawn,
}

impl WeightInfo {
    /// The first rank of those that have each part, in the order of places, the last cut's the
    /// fastest.
    pub fn holders(&self) -> Vec<usize> {
        self.cuts.iter().fold(vec![0], |ranks, cut| {
            let places = move |rank| (0..cut.parts).map(move |p| rank + (p * cut.stride) as usize);
            ranks.into_iter().flat_map(places).collect()
        })
    }

    /// How many leading dims are stacked.
    pub fn stacked(&self) -> usize {
        self.starts.len()
    }

    /// The stored tensors in the order they lie in the buffer, each with its position: tensor `p`
    /// is the elements `p * n .. (p + 1) * n`, where `n` is the product of the unstacked dims.
    /// `dims` are the buffer's.
    pub fn stored_names<'a>(
        &'a self,
        dims: &[i64],
    ) -> impl Iterator<Item = (String, usize)> + use<'a> {
        self.names_of(&self.template, dims)
    }

    /// As `stored_names`, for each of the duplicates in turn.
    pub fn duplicate_names<'a>(
        &'a self,
        dims: &[i64],
    ) -> impl Iterator<Item = (String, usize)> + use<'a> {
        let sizes = dims.to_vec();
        self.duplicates.iter().flat_map(move |template| self.names_of(template, &sizes))
    }

    fn names_of<'a>(
        &'a self,
        template: &'a str,
        dims: &[i64],
    ) -> impl Iterator<Item = (String, usize)> + use<'a> {
        let sizes: Vec<usize> =
            dims.iter().take(self.stacked()).map(|&size| size.max(0) as usize).collect();
        let count = sizes.iter().product();
        (0..count).map(move |position| {
            let mut rest = position;
            let mut numbers = vec![0u64; sizes.len()];
            for (axis, &size) in sizes.iter().enumerate().rev() {
                numbers[axis] = u64::from(self.starts[axis]) + (rest % size) as u64;
                rest /= size;
            }
            (fill(template, &numbers), position)
        })
    }
}

/// The names between braces, in order of first appearance.
pub(crate) fn placeholders(template: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for part in template.split('{').skip(1) {
        if let Some((name, _)) = part.split_once('}')
            && !found.contains(&name)
        {
            found.push(name);
        }
    }
    found
}

fn fill(template: &str, numbers: &[u64]) -> String {
    let mut filled = template.to_owned();
    for (name, number) in placeholders(template).iter().zip(numbers) {
        filled = filled.replace(&format!("{{{name}}}"), &number.to_string());
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(template: &str, starts: &[u32], duplicates: &[&str]) -> WeightInfo {
        WeightInfo {
            template: template.into(),
            starts: starts.to_vec(),
            duplicates: duplicates.iter().map(|&name| name.into()).collect(),
            init: Init::Drawn,
            trained: true,
            coded: None,
            cuts: vec![],
        }
    }

    #[test]
    fn stacked_dims_count_from_their_starts() {
        let experts = weight("model.layers.{i}.mlp.experts.{j}.up_proj.weight", &[3, 0], &[]);
        let names: Vec<_> = experts.stored_names(&[58, 256, 2048, 7168]).collect();
        assert_eq!(names.len(), 58 * 256);
        assert_eq!(names[0], ("model.layers.3.mlp.experts.0.up_proj.weight".into(), 0));
        assert_eq!(names[257], ("model.layers.4.mlp.experts.1.up_proj.weight".into(), 257));
        assert_eq!(names.last().unwrap().0, "model.layers.60.mlp.experts.255.up_proj.weight");
    }

    #[test]
    fn an_unstacked_weight_is_one_tensor() {
        let embed = weight("model.embed_tokens.weight", &[], &["model.layers.61.embed.weight"]);
        let names: Vec<_> = embed.stored_names(&[512, 256]).collect();
        assert_eq!(names, [("model.embed_tokens.weight".to_owned(), 0)]);
        let duplicates: Vec<_> = embed.duplicate_names(&[512, 256]).collect();
        assert_eq!(duplicates, [("model.layers.61.embed.weight".to_owned(), 0)]);
    }

    #[test]
    fn a_placeholder_may_appear_twice() {
        let twice = weight("block.{i}.part.{i}", &[7], &[]);
        assert_eq!(twice.stored_names(&[1, 4]).next().unwrap().0, "block.7.part.7");
    }
}

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
    /// Where experts have several copies each: a line for each index of the stacked dims before
    /// the last, the expert at each place of all ranks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<Vec<u32>>,
    /// The buffer holds no tensors but, by line, where each expert's copies are:
    /// i32[.., experts, turns].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub table: bool,
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

    /// Whether a buffer of `dims` has places for its experts, and a table one for each.
    pub(crate) fn is_placed(&self, dims: &[i64]) -> bool {
        let at = match self.table {
            true => dims.len().checked_sub(2),
            false => self.stacked().checked_sub(1),
        };
        let Some(at) = at else { return false };
        let n_lines: i64 = dims[..at].iter().product();
        let cut = self.cuts.iter().filter(|cut| cut.dim as usize == at);
        let n_places: i64 = cut.map(|cut| i64::from(cut.parts)).product::<i64>() * dims[at];
        let found = |line: &Vec<u32>, e: i64| line.iter().any(|of| i64::from(*of) == e);
        let fits = |line: &Vec<u32>| match self.table {
            true => (0..dims[at]).all(|e| found(line, e)),
            false => line.len() as i64 == n_places,
        };
        self.places.len() as i64 == n_lines && self.places.iter().all(fits)
    }

    /// What the buffer of a table holds on a rank: an expert's places in turn, the rank's first.
    pub fn turns(&self, dims: &[i64], rank: usize) -> Vec<i32> {
        let [.., n_experts, n_turns] = dims else { return vec![] };
        let mut all = vec![];
        for line in &self.places {
            for expert in 0..*n_experts {
                let at = |(place, e): (usize, &u32)| {
                    (i64::from(*e) == expert).then_some(i32::try_from(place).unwrap_or(i32::MAX))
                };
                let places: Vec<i32> = line.iter().enumerate().filter_map(at).collect();
                let turns = (0..*n_turns as usize).map(|turn| places[(rank + turn) % places.len()]);
                all.extend(turns);
            }
        }
        all
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
            if let (Some(last), false) = (numbers.last_mut(), self.places.is_empty()) {
                let line = position / sizes.last().copied().unwrap_or(1).max(1);
                *last = u64::from(self.places[line][*last as usize]);
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
            places: vec![],
            table: false,
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
    fn places_have_the_tensors_of_their_experts() {
        let places = vec![vec![0, 1, 2, 0], vec![2, 1, 2, 0]];
        let up = WeightInfo { places, ..weight("{i}.up.{j}", &[3, 0], &[]) };
        let names: Vec<_> = up.stored_names(&[2, 4, 8]).map(|(name, _)| name).collect();
        let expected = ["3.up.0", "3.up.1", "3.up.2", "3.up.0", "4.up.2", "4.up.1", "4.up.2"];
        assert_eq!(names[..7], expected);
        assert_eq!(up.turns(&[2, 3, 2], 0), [0, 3, 1, 1, 2, 2, 3, 3, 1, 1, 0, 2]);
        assert_eq!(up.turns(&[2, 3, 2], 1)[..2], [3, 0]);
    }

    #[test]
    fn a_placeholder_may_appear_twice() {
        let twice = weight("block.{i}.part.{i}", &[7], &[]);
        assert_eq!(twice.stored_names(&[1, 4]).next().unwrap().0, "block.7.part.7");
    }
}

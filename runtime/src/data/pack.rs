//! Best-fit packing (Ding et al. 2024, "Fewer truncations improve language modeling").
//!
//! Only documents longer than the row are cut; the pieces then fill rows best-fit, longest first.
//! Nothing is dropped and almost nothing is padded.

use std::collections::BTreeMap;

/// What a padded position holds, in tokens and in segments.
pub const PAD: i32 = -1;

/// One row of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Token ids, then [`PAD`].
    pub tokens: Vec<i32>,
    /// For every token the index of its document within the row, from 0; [`PAD`] where padded.
    pub segments: Vec<i32>,
}

/// Packs whole documents into rows of `length` tokens. Fullest rows come first.
pub fn pack(documents: &[Vec<u32>], length: usize) -> Vec<Row> {
    assert!(length > 0, "a row holds at least one token");
    let pieces: Vec<&[u32]> = documents.iter().flat_map(|d| d.chunks(length)).collect();
    let lengths: Vec<usize> = pieces.iter().map(|p| p.len()).collect();
    best_fit_decreasing(&lengths, length)
        .iter()
        .map(|items| fill_row(items.iter().map(|&i| pieces[i]), length))
        .collect()
}

/// Assigns items to bins: longest first, each into the fullest bin that still takes it. Among equal
/// items the earlier goes first, among equal bins the last one filled is taken. O(n log n).
pub fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    // Free space -> bins that have it; bins without any are left out.
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for item in order {
        let length = lengths[item];
        debug_assert!(length <= capacity);
        let fit = open.range(length..).next().map(|(&free, _)| free);
        let (bin, free) = match fit {
            Some(free) => (take_bin(&mut open, free), free),
            None => {
                bins.push(Vec::new());
                (bins.len() - 1, capacity)
            }
        };
        bins[bin].push(item);
        if free > length {
            open.entry(free - length).or_default().push(bin);
        }
    }
    bins
}

fn take_bin(open: &mut BTreeMap<usize, Vec<usize>>, free: usize) -> usize {
    let bins = open.get_mut(&free).expect("the key was just found");
    let bin = bins.pop().expect("no list of bins is left empty");
    if bins.is_empty() {
        open.remove(&free);
    }
    bin
}

fn fill_row<'a>(pieces: impl Iterator<Item = &'a [u32]>, length: usize) -> Row {
    let mut row = Row { tokens: Vec::with_capacity(length), segments: Vec::with_capacity(length) };
    for (piece, segment) in pieces.zip(0..) {
        row.tokens.extend(piece.iter().map(|&id| id as i32));
        row.segments.resize(row.tokens.len(), segment);
    }
    row.tokens.resize(length, PAD);
    row.segments.resize(length, PAD);
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::philox::Stream;

    /// Documents of log-normal length around e^mean tokens, as corpora of source text have; token
    /// ids count through all documents so that none can be lost unseen.
    fn documents(n: u64, mean: f64, deviation: f64) -> Vec<Vec<u32>> {
        let stream = Stream::new(1, "lengths");
        let mut next = 0;
        let mut document = |i| {
            let n = (mean + deviation * stream.normal(0, i)).exp().ceil() as u32;
            next += n;
            (next - n..next).collect()
        };
        (0..n).map(&mut document).collect()
    }

    fn utilisation(rows: &[Row]) -> f64 {
        let n_tokens: usize =
            rows.iter().map(|r| r.tokens.iter().filter(|&&t| t != PAD).count()).sum();
        n_tokens as f64 / (rows.len() * rows[0].tokens.len()) as f64
    }

    #[test]
    fn no_token_is_lost_and_no_row_overfilled() {
        let documents = documents(300, 5.0, 1.2);
        for length in [1, 7, 256, 10_000] {
            let rows = pack(&documents, length);
            assert!(rows.iter().all(|r| r.tokens.len() == length && r.segments.len() == length));
            let mut seen: Vec<i32> = rows.into_iter().flat_map(|r| r.tokens).collect();
            seen.retain(|&t| t != PAD);
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..documents.iter().map(Vec::len).sum::<usize>() as i32));
        }
    }

    #[test]
    fn almost_nothing_is_padded() {
        for (length, n) in [(256, 2000), (2048, 4000), (4096, 4000)] {
            let used = utilisation(&pack(&documents(n, 6.5, 1.0), length));
            assert!(used > 0.995, "rows of {length}: {used}");
        }
    }

    #[test]
    fn a_document_that_fits_is_never_cut() {
        let documents = documents(500, 4.5, 0.5);
        let length = 512;
        let rows = pack(&documents, length);
        for document in documents.iter().filter(|d| d.len() <= length) {
            let first = document[0] as i32;
            let row = rows.iter().find(|r| r.tokens.contains(&first)).unwrap();
            let at = row.tokens.iter().position(|&t| t == first).unwrap();
            let end = at + document.len();
            assert!(
                row.tokens[at..end]
                    .iter()
                    .eq(&document.iter().map(|&t| t as i32).collect::<Vec<_>>())
            );
            assert!(row.segments[at..end].iter().all(|&s| s == row.segments[at]));
        }
    }

    #[test]
    fn segments_count_from_zero_and_padding_comes_last() {
        let rows = pack(&[vec![7, 7, 7], vec![8, 8], vec![9]], 8);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].tokens, [7, 7, 7, 8, 8, 9, PAD, PAD]);
        assert_eq!(rows[0].segments, [0, 0, 0, 1, 1, 2, PAD, PAD]);
    }

    #[test]
    fn a_piece_goes_where_it_leaves_least_space() {
        // 6 and 5 open two bins of 8; 2 fills the first exactly although the second has room.
        assert_eq!(best_fit_decreasing(&[6, 5, 2, 3], 8), [vec![0, 2], vec![1, 3]]);
    }
}

//! Experts on GPUs by their load: which to have several copies of, and which copies share a GPU
//! (DeepSeek's expert-parallel load balancer).
//!
//! *Replicate*: copies go one at a time to the expert with the largest load a copy. *Pack*: items
//! go, largest first, to the lightest pack that is not full. Hierarchically, groups of experts are
//! packed onto nodes first, so that a group's tokens stay in a node, and each node replicates and
//! packs its own; without whole groups to a node, all experts are one group on one node. Sums and
//! quotients are f32 and ties go to the lowest index, as in the published tool.

use crate::ScheduleError;

/// Where experts may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Copies of all experts together.
    pub n_replicas: usize,
    /// Groups of experts that follow one another.
    pub n_groups: usize,
    pub n_nodes: usize,
    pub n_gpus: usize,
}

impl Places {
    /// Whether groups go to nodes as a whole.
    pub fn hierarchical(&self) -> bool {
        self.n_groups.is_multiple_of(self.n_nodes)
    }
}

/// Where the copies of one layer's experts are.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// The expert of each place; places of a GPU follow one another.
    pub experts: Vec<usize>,
    /// Which copy of that expert it is.
    pub copies: Vec<usize>,
    /// Copies of each expert.
    pub n_copies: Vec<usize>,
}

impl Balance {
    /// The places of each expert, its first copy first.
    pub fn places(&self) -> Vec<Vec<usize>> {
        let mut all: Vec<Vec<usize>> = self.n_copies.iter().map(|n| vec![0; *n]).collect();
        for (place, (expert, copy)) in self.experts.iter().zip(&self.copies).enumerate() {
            all[*expert][*copy] = place;
        }
        all
    }

    /// The load of each GPU, a load split evenly among its copies.
    pub fn gpu_loads(&self, loads: &[f64], n_gpus: usize) -> Vec<f64> {
        let share = |e: &usize| loads[*e] / self.n_copies[*e] as f64;
        let per_gpu = (self.experts.len() / n_gpus.max(1)).max(1);
        self.experts.chunks(per_gpu).map(|c| c.iter().map(share).sum()).collect()
    }
}

/// Balances one layer, whose experts had these loads.
pub fn balance(loads: &[f64], places: Places) -> Result<Balance, ScheduleError> {
    check(loads, places)?;
    let Places { n_replicas, n_groups, n_nodes, n_gpus } = places;
    let (n_groups, n_nodes) = if places.hierarchical() { (n_groups, n_nodes) } else { (1, 1) };
    let loads: Vec<f32> = loads.iter().map(|l| *l as f32).collect();
    let group_size = loads.len() / n_groups;
    let group_loads: Vec<f32> = loads.chunks(group_size).map(|g| g.iter().sum()).collect();

    let mut result = Balance { experts: vec![], copies: vec![], n_copies: vec![0; loads.len()] };
    for groups in pack(&group_loads, n_nodes) {
        let here: Vec<usize> =
            groups.iter().flat_map(|g| g * group_size..(g + 1) * group_size).collect();
        let here_loads: Vec<f32> = here.iter().map(|e| loads[*e]).collect();
        let (experts, copies, n_copies) = replicate(&here_loads, n_replicas / n_nodes);
        let share = |e: &usize| here_loads[*e] / n_copies[*e] as f32;
        let shares: Vec<f32> = experts.iter().map(share).collect();
        for place in pack(&shares, n_gpus / n_nodes).into_iter().flatten() {
            result.experts.push(here[experts[place]]);
            result.copies.push(copies[place]);
        }
        for (e, n) in here.iter().zip(&n_copies) {
            result.n_copies[*e] = *n;
        }
    }
    Ok(result)
}

/// Places, at most: beyond it somebody mistyped a number.
const REPLICAS_MAX: usize = 1 << 20;

fn check(loads: &[f64], places: Places) -> Result<(), ScheduleError> {
    let Places { n_replicas, n_groups, n_nodes, n_gpus } = places;
    let fail = |text: String| Err(ScheduleError(text));
    let n = loads.len();
    if let Some(i) = loads.iter().position(|l| !(0.0..1e30).contains(l)) {
        return fail(format!("the load of expert {i} is {}: expected a number from 0", loads[i]));
    }
    if n == 0 || n_groups == 0 || n_nodes == 0 || n_gpus == 0 {
        return fail(format!(
            "{n} experts in {n_groups} groups on {n_gpus} GPUs of {n_nodes} nodes: none may be 0"
        ));
    }
    if n_replicas < n || n_replicas > REPLICAS_MAX {
        return fail(format!(
            "{n_replicas} replicas for {n} experts; at least {n}, at most {REPLICAS_MAX}"
        ));
    }
    if !n_replicas.is_multiple_of(n_gpus) {
        let below = n_replicas / n_gpus * n_gpus;
        let near = match below + n_gpus {
            above if below < n => above.to_string(),
            above => format!("{below} or {above}"),
        };
        return fail(format!(
            "{n_replicas} replicas do not divide among {n_gpus} GPUs; the nearest is {near}"
        ));
    }
    if !n_gpus.is_multiple_of(n_nodes) {
        let below = n_gpus / n_nodes * n_nodes;
        return fail(format!(
            "{n_gpus} GPUs do not divide among {n_nodes} nodes; the nearest is {}",
            if below == 0 { n_nodes } else { below }
        ));
    }
    if !n.is_multiple_of(n_groups) {
        let near = (1..=n_groups.min(n)).rev().find(|g| n.is_multiple_of(*g)).unwrap_or(1);
        return fail(format!(
            "{n} experts do not divide into {n_groups} groups; the nearest is {near}"
        ));
    }
    Ok(())
}

/// Items of each of `n_packs` packs, equally many, in the order in which they came in.
fn pack(weights: &[f32], n_packs: usize) -> Vec<Vec<usize>> {
    let per_pack = weights.len() / n_packs;
    if per_pack == 1 {
        return (0..n_packs).map(|i| vec![i]).collect();
    }
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
    let mut packs = vec![(0f32, vec![]); n_packs];
    for item in order {
        let open =
            packs.iter_mut().filter(|(_, items): &&mut (f32, Vec<usize>)| items.len() < per_pack);
        // The first of the lightest.
        if let Some(pack) = open.min_by(|a, b| a.0.total_cmp(&b.0)) {
            pack.0 += weights[item];
            pack.1.push(item);
        }
    }
    packs.into_iter().map(|(_, items)| items).collect()
}

/// The expert and the copy of each replica, and the copies of each expert.
fn replicate(weights: &[f32], n_replicas: usize) -> (Vec<usize>, Vec<usize>, Vec<usize>) {
    let n = weights.len();
    let (mut experts, mut copies) = ((0..n).collect::<Vec<_>>(), vec![0; n]);
    let mut n_copies = vec![1usize; n];
    for _ in n..n_replicas {
        let share = |e: usize| weights[e] / n_copies[e] as f32;
        // The first of the heaviest.
        let most = (1..n).fold(0, |most, e| if share(e) > share(most) { e } else { most });
        experts.push(most);
        copies.push(n_copies[most]);
        n_copies[most] += 1;
    }
    (experts, copies, n_copies)
}

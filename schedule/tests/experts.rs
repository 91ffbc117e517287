//! The load balancer of experts against its published example, and what every balance must be.

use weft_schedule::experts::{Balance, Places, balance};

const LOADS: [[f64; 12]; 2] = [
    [90.0, 132.0, 40.0, 61.0, 104.0, 165.0, 39.0, 4.0, 73.0, 56.0, 183.0, 86.0],
    [20.0, 107.0, 104.0, 64.0, 19.0, 197.0, 187.0, 157.0, 172.0, 86.0, 16.0, 27.0],
];

fn max(loads: &[f64]) -> f64 {
    loads.iter().copied().fold(0.0, f64::max)
}

#[test]
fn the_published_example_comes_out() {
    let places = Places { n_replicas: 16, n_groups: 4, n_nodes: 2, n_gpus: 8 };
    let want = [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ];
    for (loads, want) in LOADS.iter().zip(want) {
        let found = balance(loads, places).expect("a balance");
        assert_eq!(found.experts, want);
    }
}

/// Every expert is somewhere, copies are numbered, GPUs have equally many places.
fn sound(b: &Balance, n_experts: usize, places: Places) {
    assert_eq!(b.experts.len(), places.n_replicas);
    assert_eq!(b.n_copies.iter().sum::<usize>(), places.n_replicas);
    assert!(b.n_copies.iter().all(|n| *n > 0));
    for (expert, at) in b.places().iter().enumerate() {
        let here: Vec<usize> = (0..places.n_replicas).filter(|p| b.experts[*p] == expert).collect();
        let mut sorted = at.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, here);
    }
    assert_eq!(b.n_copies.len(), n_experts);
}

#[test]
fn groups_stay_on_their_node_and_loads_come_closer() {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) % 1000) as f64
    };
    for (n, places) in [
        (256, Places { n_replicas: 288, n_groups: 8, n_nodes: 4, n_gpus: 32 }),
        (256, Places { n_replicas: 288, n_groups: 8, n_nodes: 18, n_gpus: 144 }),
        (64, Places { n_replicas: 64, n_groups: 1, n_nodes: 1, n_gpus: 8 }),
        (8, Places { n_replicas: 12, n_groups: 2, n_nodes: 2, n_gpus: 4 }),
    ] {
        let (mut before_sum, mut after_sum) = (0.0, 0.0);
        for _ in 0..5 {
            let loads: Vec<f64> = (0..n).map(|_| next()).collect();
            let b = balance(&loads, places).expect("a balance");
            sound(&b, n, places);
            if places.hierarchical() {
                let per_node = places.n_replicas / places.n_nodes;
                let size = n / places.n_groups;
                let node_of = |p: usize| p / per_node;
                for (expert, at) in b.places().iter().enumerate() {
                    let first = b.places()[expert / size * size][0];
                    assert!(at.iter().all(|p| node_of(*p) == node_of(first)));
                }
            }
            // Against experts in their order, as many GPUs, without copies.
            let per_gpu = n as f64 / places.n_gpus as f64;
            let plain = |g: usize| {
                let range = (g as f64 * per_gpu) as usize..((g + 1) as f64 * per_gpu) as usize;
                loads[range].iter().sum::<f64>()
            };
            let before: Vec<f64> = (0..places.n_gpus).map(plain).collect();
            let after = b.gpu_loads(&loads, places.n_gpus);
            assert!((after.iter().sum::<f64>() - loads.iter().sum::<f64>()).abs() < 1e-6);
            before_sum += max(&before);
            after_sum += max(&after);
        }
        // What is greedy may lose to luck once, not five times.
        if n.is_multiple_of(places.n_gpus) {
            assert!(after_sum < before_sum, "{after_sum} {before_sum}");
        }
    }
}

#[test]
fn places_that_do_not_divide_name_the_nearest_that_do() {
    let refuse = |loads: &[f64], n_replicas, n_groups, n_nodes, n_gpus, want: &str| {
        let places = Places { n_replicas, n_groups, n_nodes, n_gpus };
        let e = balance(loads, places).expect_err("no balance").to_string();
        assert!(e.contains(want), "{e}");
    };
    let loads = &LOADS[0];
    refuse(loads, 15, 4, 2, 8, "15 replicas do not divide among 8 GPUs; the nearest is 16");
    refuse(loads, 17, 4, 2, 8, "the nearest is 16 or 24");
    refuse(loads, 10, 4, 2, 8, "10 replicas for 12 experts; at least 12");
    refuse(loads, 18, 4, 4, 9, "9 GPUs do not divide among 4 nodes; the nearest is 8");
    refuse(loads, 16, 5, 1, 8, "12 experts do not divide into 5 groups; the nearest is 4");
    refuse(loads, 16, 0, 1, 8, "none may be 0");
    refuse(&[1.0, f64::NAN], 2, 1, 1, 1, "the load of expert 1 is NaN");
    refuse(&[1.0, -2.0], 2, 1, 1, 1, "the load of expert 1 is -2");
}

//! Two graphs as one: entries side by side, with what they refer to renumbered.

use crate::{ConstantId, Graph, KernelId, ObjectId, Role, Step};

impl Graph {
    /// Adds the entries of `other`, a verified graph for the same machines, behind one's own.
    /// Their names must differ for `verify` to pass.
    pub fn append(&mut self, other: Graph) {
        let first_object = self.objects.len() as u32;
        let first_constant = self.constants.len() as u32;
        self.objects.extend(other.objects);
        self.constants.extend(other.constants);
        // Equal names mean equal code: a kernel is kept once.
        let mut places = Vec::with_capacity(other.kernels.len());
        for mut kernel in other.kernels {
            let known = self.kernels.iter().position(|k| k.name == kernel.name);
            places.push(known.unwrap_or(self.kernels.len()) as u32);
            if let Some(known) = known {
                let known = &mut self.kernels[known];
                known.scratch_bytes = known.scratch_bytes.max(kernel.scratch_bytes);
                continue;
            }
            for variant in &mut kernel.variants {
                variant.object = ObjectId(variant.object.0 + first_object);
            }
            if let Some(code) = &mut kernel.ptx {
                code.object = ObjectId(code.object.0 + first_object);
            }
            self.kernels.push(kernel);
        }
        self.entries.extend(other.entries.into_iter().map(|mut entry| {
            for buffer in &mut entry.buffers {
                if let Role::Constant(id) = &mut buffer.role {
                    *id = ConstantId(id.0 + first_constant);
                }
            }
            move_kernels(&mut entry.steps, &places);
            entry
        }));
    }
}

fn move_kernels(steps: &mut [Step], places: &[u32]) {
    for step in steps {
        match step {
            Step::Launch(launch) => launch.kernel = KernelId(places[launch.kernel.0 as usize]),
            Step::Loop(inner) => move_kernels(&mut inner.body, places),
            Step::Copy(_) | Step::Collective(_) | Step::Message(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buffer, CpuVariant, DType, Entry, Kernel, KernelVariant, Launch};

    fn graph(name: &str) -> Graph {
        let buffer = Buffer::new("c", DType::F32, vec![1.into()], Role::Constant(ConstantId(0)));
        let launch = Launch::new(KernelId(1), vec![], 1.into(), "l");
        let variant = KernelVariant { cpu: CpuVariant::Avx2, object: ObjectId(0) };
        let kernel = |name: &str| Kernel {
            name: name.into(),
            variants: vec![variant],
            ptx: None,
            scratch_bytes: name.len() as u64,
        };
        Graph {
            entries: vec![Entry {
                name: name.into(),
                buffers: vec![buffer],
                steps: vec![Step::Launch(launch)],
                ..Entry::default()
            }],
            kernels: vec![kernel("shared"), kernel(name)],
            objects: vec![name.as_bytes().to_vec()],
            constants: vec![vec![0; 4]],
            ..Graph::default()
        }
    }

    #[test]
    fn what_an_entry_refers_to_moves_with_it() {
        let mut whole = graph("a");
        whole.append(graph("b"));
        let b = whole.entry("b").expect("it was added");
        assert_eq!(b.buffers[0].role, Role::Constant(ConstantId(1)));
        let Step::Launch(launch) = &b.steps[0] else { panic!("it is a launch") };
        let kernel = whole.kernel(launch.kernel);
        assert_eq!(kernel.name, "b");
        let names: Vec<&str> = whole.kernels.iter().map(|k| k.name.as_str()).collect();
        assert_eq!(names, ["shared", "a", "b"]);
        assert_eq!(whole.objects[kernel.variants[0].object.0 as usize], b"b");
    }
}

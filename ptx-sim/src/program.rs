//! A kernel as it is run: one [`Inst`] a PTX instruction, names resolved, types turned into
//! function pointers, so that nothing compares strings once a kernel is loaded.

use crate::error::SourceLine;
use crate::exec::atomic::Atomic;
use crate::exec::fence::Fence;
use crate::matrix::Matrix;
use crate::mbarrier::MbarrierOp;
use crate::scalar::convert::Convert;
use crate::tensor_map::Field;
use crate::tma::{BulkCopy, TensorCopy};
use crate::wgmma::Wgmma;

pub type Fn1 = fn(u64) -> u64;
pub type Fn2 = fn(u64, u64) -> u64;
pub type Fn3 = fn(u64, u64, u64) -> u64;
pub type Fn4 = fn(u64, u64, u64, u64) -> u64;

/// Everything an entry needs to run.
pub struct Kernel {
    pub name: String,
    pub code: Vec<Inst>,
    pub n_registers: u32,
    pub params: Vec<Param>,
    pub params_bytes: u64,
    pub local_bytes: u64,
    /// End of the static shared variables in the shared window, before dynamic ones.
    pub static_shared_end: u32,
    pub uses_dynamic_shared: bool,
    pub required_block: Option<[u32; 3]>,
    pub max_threads: Option<u32>,
    pub required_cluster: Option<[u32; 3]>,
    /// Opcodes as written, for counts and messages.
    pub opcodes: Vec<String>,
    pub sources: Vec<SourceLine>,
    pub calls: Vec<Call>,
}

#[derive(Clone, Debug)]
pub struct Param {
    pub name: String,
    pub offset: u64,
    pub size_bytes: u64,
}

/// A direct call: bytes copied into the callee's parameters, and back on return.
#[derive(Clone, Debug)]
pub struct Call {
    pub target: u32,
    pub arguments: Vec<Slot>,
    pub results: Vec<Slot>,
}

/// `size_bytes` of a thread's frame, from one offset to another.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub from: u64,
    pub to: u64,
    pub size_bytes: u64,
}

pub struct Inst {
    pub op: Op,
    pub guard: Option<Guard>,
    pub dst: Box<[Dst]>,
    pub src: Box<[Src]>,
    /// All live lanes of the warp must be here together.
    pub aligned: bool,
    pub line: u32,
    pub source: Option<u32>,
    pub opcode: u32,
    /// Row of the table of primitives.
    pub primitive: u16,
}

#[derive(Clone, Copy, Debug)]
pub struct Guard {
    pub register: u32,
    pub negated: bool,
}

/// A written register; `mask` keeps the bits it has.
#[derive(Clone, Copy, Debug)]
pub struct Dst {
    pub register: u32,
    pub mask: u64,
}

impl Dst {
    pub const SINK: Dst = Dst { register: u32::MAX, mask: 0 };

    pub fn is_sink(self) -> bool {
        self.register == u32::MAX
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Src {
    Register(u32),
    /// A predicate, inverted.
    Not(u32),
    Imm(u64),
    /// An offset in the shared window of the running CTA.
    Shared(u32),
    /// An address: a register and a byte offset.
    Offset(u32, i64),
    Special(Special),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Clusterid(u8),
    Nclusterid(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
    Laneid,
    Warpid,
    Nwarpid,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    Smid,
    Nsmid,
    Gridid,
    Clock,
    DynamicSmemSize,
    TotalSmemSize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSpace {
    Generic,
    Global,
    /// Shared memory of the executing CTA.
    SharedCta,
    /// Shared memory of any CTA of the cluster.
    SharedCluster,
    Local,
    Param,
    Const,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Cta,
    Cluster,
    Gpu,
    Sys,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Weak,
    Relaxed,
    Acquire,
    Release,
    AcqRel,
}

impl Order {
    pub fn acquires(self) -> bool {
        matches!(self, Order::Acquire | Order::AcqRel)
    }

    pub fn releases(self) -> bool {
        matches!(self, Order::Release | Order::AcqRel)
    }
}

/// How a load or store goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub space: AddressSpace,
    /// Of one element.
    pub bytes: u8,
    pub n: u8,
    pub signed: bool,
    pub order: Order,
    pub scope: Scope,
    /// `.nc`: the memory is not written while the kernel runs.
    pub read_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarMode {
    Sync,
    Arrive,
    And,
    Or,
    Popc,
}

pub enum Op {
    Nop,
    Map1(Fn1),
    Map2(Fn2),
    Map3(Fn3),
    Map4(Fn4),
    /// A predicate and its complement.
    SetpPair(Fn2),
    /// A comparison joined with a third operand, a predicate.
    SetpJoin(Fn2, Fn2),
    Convert(Convert),
    /// Several registers of `bits` into one, low first; and apart again.
    Pack(u8),
    Unpack(u8),
    Load(Access),
    Store(Access),
    Atomic(Box<Atomic>),
    Bra(u32),
    BraIndexed(Box<[u32]>),
    Call(u32),
    Ret,
    Exit,
    Trap,
    Shfl(ShflMode),
    Vote(VoteMode),
    Redux(Fn2),
    MatchAny,
    Activemask,
    Elect,
    WarpSync,
    Bar(BarMode),
    ClusterArrive {
        releases: bool,
    },
    ClusterWait,
    Fence(Fence),
    CvtaShared {
        to_generic: bool,
    },
    IsSpace(AddressSpace),
    /// To the same offset in the CTA of another rank.
    Mapa {
        generic: bool,
    },
    GetCtaRank,
    Mbarrier(MbarrierOp),
    TensorCopy(Box<TensorCopy>),
    BulkCopy(Box<BulkCopy>),
    BulkCommit,
    BulkWait {
        read: bool,
    },
    TensormapReplace(Field, AddressSpace),
    Wgmma(Box<Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait,
    Ldmatrix(Matrix),
    Stmatrix(Matrix),
    Setmaxnreg,
}

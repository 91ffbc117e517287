//! What both backends share: LLVM emission, scalar expressions, row kernels.

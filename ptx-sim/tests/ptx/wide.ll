; Every Hopper instruction and kind of arithmetic that LLVM has of its own: to be loaded, not run.
; Compiled with llc -mcpu=sm_90a -mattr=+ptx83, at -O3 and at -O0.
target triple = "nvptx64-nvidia-cuda"
@smem = external addrspace(3) global [0 x i8], align 1024
declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)
declare void @llvm.nvvm.barrier.cta.sync.aligned.count(i32,i32)
declare void @llvm.nvvm.barrier.cta.arrive.aligned.count(i32,i32)
declare {i32,i1} @llvm.nvvm.elect.sync(i32)
declare void @llvm.nvvm.wgmma.fence.sync.aligned()
declare void @llvm.nvvm.wgmma.commit_group.sync.aligned()
declare void @llvm.nvvm.wgmma.wait_group.sync.aligned(i64)
declare void @llvm.nvvm.setmaxnreg.inc.sync.aligned.u32(i32)
declare void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3), i32)
declare void @llvm.nvvm.cp.async.bulk.tensor.g2s.tile.2d(ptr addrspace(7), ptr addrspace(3), ptr, i32, i32, i16, i64, i1, i1, i32)
declare void @llvm.nvvm.cp.async.bulk.tensor.s2g.tile.2d(ptr addrspace(3), ptr, i32, i32, i64, i1)
declare void @llvm.nvvm.cp.async.bulk.tensor.reduce.add.tile.2d(ptr addrspace(3), ptr, i32, i32, i64, i1)
declare void @llvm.nvvm.cp.async.bulk.commit.group()
declare void @llvm.nvvm.cp.async.bulk.wait.group.read(i32)
declare void @llvm.nvvm.griddepcontrol.wait()
declare void @llvm.nvvm.griddepcontrol.launch.dependents()
declare ptr addrspace(7) @llvm.nvvm.mapa.shared.cluster(ptr addrspace(3), i32)
declare void @llvm.nvvm.barrier.cluster.arrive.aligned()
declare void @llvm.nvvm.barrier.cluster.wait.aligned()
declare {i32,i32,i32,i32} @llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16.p3(ptr addrspace(3))
declare void @llvm.nvvm.stmatrix.sync.aligned.m8n8.x4.b16.p3(ptr addrspace(3), i32,i32,i32,i32)
declare i16 @llvm.nvvm.ff.to.e4m3x2.rn(float,float)
declare <2 x half> @llvm.nvvm.e4m3x2.to.f16x2.rn(i16)
declare <2 x bfloat> @llvm.fma.v2bf16(<2 x bfloat>,<2 x bfloat>,<2 x bfloat>)
declare <2 x bfloat> @llvm.maxnum.v2bf16(<2 x bfloat>,<2 x bfloat>)
declare bfloat @llvm.fma.bf16(bfloat,bfloat,bfloat)
declare float @llvm.nvvm.ex2.approx.ftz.f32(float)
declare float @llvm.nvvm.lg2.approx.ftz.f(float)
declare float @llvm.nvvm.rcp.approx.ftz.f(float)
declare float @llvm.tanh.f32(float)
declare float @llvm.sin.f32(float)
declare float @llvm.cos.f32(float)
declare float @llvm.sqrt.f32(float)
declare float @llvm.fabs.f32(float)
declare float @llvm.trunc.f32(float)
declare float @llvm.ceil.f32(float)
declare float @llvm.round.f32(float)
declare float @llvm.minimum.f32(float,float)
declare i32 @llvm.fptosi.sat.i32.f32(float)
declare i32 @llvm.ctlz.i32(i32,i1)
declare i32 @llvm.cttz.i32(i32,i1)
declare i64 @llvm.ctpop.i64(i64)
declare i32 @llvm.bitreverse.i32(i32)
declare i32 @llvm.bswap.i32(i32)
declare i32 @llvm.abs.i32(i32,i1)
declare i32 @llvm.sadd.sat.i32(i32,i32)
declare i32 @llvm.smin.i32(i32,i32)
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.laneid()
declare i32 @llvm.nvvm.read.ptx.sreg.warpid()
declare i32 @llvm.nvvm.read.ptx.sreg.cluster.ctarank()
declare i32 @llvm.nvvm.read.ptx.sreg.clusterid.x()
declare i32 @llvm.nvvm.vote.ballot.sync(i32, i1)
declare i32 @llvm.nvvm.redux.sync.add(i32,i32)
declare void @llvm.nvvm.fence.proxy.async.shared.cta()
declare void @llvm.nvvm.fence.mbarrier_init.release.cluster()
declare void @llvm.nvvm.fence.proxy.tensormap_generic.acquire.gpu(ptr, i32)
declare void @llvm.nvvm.prefetch.tensormap.p0(ptr)
declare void @llvm.memcpy.p1.p1.i64(ptr addrspace(1), ptr addrspace(1), i64, i1)
declare void @llvm.memset.p1.i64(ptr addrspace(1), i8, i64, i1)
define ptx_kernel void @hopper(ptr byval([128 x i8]) align 64 "nvvm.grid_constant" %map, ptr addrspace(1) %y) "nvvm.reqntid"="384" "nvvm.minctasm"="1" "nvvm.cluster_dim"="2,1,1" {
  call void @llvm.nvvm.griddepcontrol.wait()
  call void @llvm.nvvm.prefetch.tensormap.p0(ptr %map)
  call void @llvm.nvvm.mbarrier.init.shared(ptr addrspace(3) @smem, i32 1)
  call void @llvm.nvvm.fence.mbarrier_init.release.cluster()
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  call void @llvm.nvvm.barrier.cta.sync.aligned.count(i32 1, i32 128)
  call void @llvm.nvvm.barrier.cta.arrive.aligned.count(i32 1, i32 128)
  %e = call {i32,i1} @llvm.nvvm.elect.sync(i32 -1)
  %e1 = extractvalue {i32,i1} %e, 1
  %rank = call i32 @llvm.nvvm.read.ptx.sreg.cluster.ctarank()
  %cid = call i32 @llvm.nvvm.read.ptx.sreg.clusterid.x()
  %m = call ptr addrspace(7) @llvm.nvvm.mapa.shared.cluster(ptr addrspace(3) @smem, i32 %rank)
  store i32 %cid, ptr addrspace(7) %m
  call void @llvm.nvvm.setmaxnreg.inc.sync.aligned.u32(i32 232)
  br i1 %e1, label %p, label %q
p:
  %dst = addrspacecast ptr addrspace(3) @smem to ptr addrspace(7)
  call void @llvm.nvvm.cp.async.bulk.tensor.g2s.tile.2d(ptr addrspace(7) %dst, ptr addrspace(3) @smem, ptr %map, i32 0, i32 1, i16 3, i64 0, i1 1, i1 0, i32 0)
  call void @llvm.nvvm.cp.async.bulk.tensor.g2s.tile.2d(ptr addrspace(7) %dst, ptr addrspace(3) @smem, ptr %map, i32 0, i32 1, i16 0, i64 5, i1 0, i1 1, i32 0)
  call void @llvm.nvvm.cp.async.bulk.tensor.s2g.tile.2d(ptr addrspace(3) @smem, ptr %map, i32 0, i32 1, i64 0, i1 0)
  call void @llvm.nvvm.cp.async.bulk.tensor.reduce.add.tile.2d(ptr addrspace(3) @smem, ptr %map, i32 0, i32 1, i64 0, i1 0)
  call void @llvm.nvvm.cp.async.bulk.commit.group()
  call void @llvm.nvvm.cp.async.bulk.wait.group.read(i32 0)
  br label %q
q:
  call void @llvm.nvvm.wgmma.fence.sync.aligned()
  call void @llvm.nvvm.wgmma.commit_group.sync.aligned()
  call void @llvm.nvvm.wgmma.wait_group.sync.aligned(i64 0)
  %lm = call {i32,i32,i32,i32} @llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16.p3(ptr addrspace(3) @smem)
  %l0 = extractvalue {i32,i32,i32,i32} %lm, 0
  %l1 = extractvalue {i32,i32,i32,i32} %lm, 1
  %l2 = extractvalue {i32,i32,i32,i32} %lm, 2
  %l3 = extractvalue {i32,i32,i32,i32} %lm, 3
  call void @llvm.nvvm.stmatrix.sync.aligned.m8n8.x4.b16.p3(ptr addrspace(3) @smem, i32 %l0, i32 %l1, i32 %l2, i32 %l3)
  call void @llvm.nvvm.barrier.cluster.arrive.aligned()
  call void @llvm.nvvm.barrier.cluster.wait.aligned()
  %a = load atomic i32, ptr addrspace(1) %y syncscope("device") acquire, align 4
  store atomic i32 %a, ptr addrspace(1) %y syncscope("device") release, align 4
  fence syncscope("device") acq_rel
  fence seq_cst
  %cx = cmpxchg ptr addrspace(1) %y, i32 %a, i32 5 acq_rel monotonic
  %rm = atomicrmw umax ptr addrspace(1) %y, i32 %a syncscope("device") monotonic
  %rs = atomicrmw sub ptr addrspace(1) %y, i32 %a syncscope("device") acq_rel
  %xc = atomicrmw xchg ptr addrspace(1) %y, i32 %rs syncscope("device") acq_rel
  %fa = atomicrmw fadd ptr addrspace(1) %y, float 1.0 syncscope("device") monotonic
  %vl = load volatile i32, ptr addrspace(1) %y
  %bal = call i32 @llvm.nvvm.vote.ballot.sync(i32 -1, i1 %e1)
  %rx = call i32 @llvm.nvvm.redux.sync.add(i32 %bal, i32 -1)
  store volatile i32 %rx, ptr addrspace(1) %y
  call void @llvm.nvvm.griddepcontrol.launch.dependents()
  ret void
}
define ptx_kernel void @math(ptr addrspace(1) noalias align 16 %x, ptr addrspace(1) noalias align 16 %y, i32 %n, i64 %q) {
  %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %t64 = zext i32 %t to i64
  %px = getelementptr <8 x bfloat>, ptr addrspace(1) %x, i64 %t64
  %v = load <8 x bfloat>, ptr addrspace(1) %px, align 16
  %w = fpext <8 x bfloat> %v to <8 x float>
  %w2 = fmul <8 x float> %w, %w
  %w3 = fptrunc <8 x float> %w2 to <8 x bfloat>
  %py = getelementptr <8 x bfloat>, ptr addrspace(1) %y, i64 %t64
  store <8 x bfloat> %w3, ptr addrspace(1) %py, align 16
  %f = extractelement <8 x float> %w, i32 3
  %e4 = call i16 @llvm.nvvm.ff.to.e4m3x2.rn(float %f, float %f)
  %h2 = call <2 x half> @llvm.nvvm.e4m3x2.to.f16x2.rn(i16 %e4)
  %h2f = fpext <2 x half> %h2 to <2 x float>
  %f1 = extractelement <2 x float> %h2f, i32 1
  %g0 = call float @llvm.nvvm.ex2.approx.ftz.f32(float %f1)
  %g1 = call float @llvm.nvvm.lg2.approx.ftz.f(float %g0)
  %g2 = call float @llvm.nvvm.rcp.approx.ftz.f(float %g1)
  %g3 = call afn float @llvm.tanh.f32(float %g2)
  %g4 = call afn float @llvm.sin.f32(float %g3)
  %g5 = call afn float @llvm.cos.f32(float %g4)
  %g6 = call afn float @llvm.sqrt.f32(float %g5)
  %g7 = fdiv afn float %g6, %f
  %g8 = fdiv float %g7, %f1
  %g9 = call float @llvm.trunc.f32(float %g8)
  %ga = call float @llvm.ceil.f32(float %g9)
  %gb = call float @llvm.round.f32(float %ga)
  %gc = call float @llvm.minimum.f32(float %gb, float %f)
  %gd = fneg float %gc
  %ge = call float @llvm.fabs.f32(float %gd)
  %gf = frem float %ge, %f
  %i0 = call i32 @llvm.fptosi.sat.i32.f32(float %gf)
  %i1 = call i32 @llvm.ctlz.i32(i32 %i0, i1 0)
  %i2 = call i32 @llvm.cttz.i32(i32 %i1, i1 0)
  %i2a = zext i32 %i2 to i64
  %i3 = call i64 @llvm.ctpop.i64(i64 %i2a)
  %i4 = trunc i64 %i3 to i32
  %i5 = call i32 @llvm.bitreverse.i32(i32 %i4)
  %i6 = call i32 @llvm.bswap.i32(i32 %i5)
  %i7 = call i32 @llvm.abs.i32(i32 %i6, i1 0)
  %i8 = call i32 @llvm.sadd.sat.i32(i32 %i7, i32 %n)
  %i9 = sdiv i32 %i8, %n
  %ia = srem i32 %i9, 7
  %ib = call i32 @llvm.smin.i32(i32 %ia, i32 %n)
  %c1 = icmp sgt i32 %ib, 3
  %c2 = fcmp olt float %gf, 1.0
  %c3 = and i1 %c1, %c2
  %c4 = xor i1 %c3, true
  %c5 = fcmp uno float %f, %f1
  %c6 = or i1 %c4, %c5
  %c7 = select i1 %c6, i32 %ib, i32 7
  %ub = uitofp i64 %q to float
  %sb = sitofp i32 %c7 to double
  %sd = fmul double %sb, 3.0
  %sf = fptrunc double %sd to float
  %su = fadd float %ub, %sf
  %hh = fptrunc float %su to half
  %hm = fmul half %hh, %hh
  %bb = bitcast half %hm to bfloat
  %bm = fadd bfloat %bb, %bb
  %bx = call bfloat @llvm.fma.bf16(bfloat %bm, bfloat %bb, bfloat %bm)
  %v2 = insertelement <2 x bfloat> poison, bfloat %bx, i32 0
  %v3 = insertelement <2 x bfloat> %v2, bfloat %bm, i32 1
  %v4 = call <2 x bfloat> @llvm.fma.v2bf16(<2 x bfloat> %v3, <2 x bfloat> %v3, <2 x bfloat> %v3)
  %v5 = call <2 x bfloat> @llvm.maxnum.v2bf16(<2 x bfloat> %v4, <2 x bfloat> %v3)
  %v6 = fmul <2 x bfloat> %v5, %v4
  %v7 = fneg <2 x bfloat> %v6
  store <2 x bfloat> %v7, ptr addrspace(1) %y, align 4
  %p2 = getelementptr i8, ptr addrspace(1) %y, i64 256
  store float %su, ptr addrspace(1) %p2
  %p3 = getelementptr i8, ptr addrspace(1) %y, i64 512
  store <4 x float> <float 1.0, float 2.0, float 3.0, float 4.0>, ptr addrspace(1) %p3, align 16
  %i8l = load <16 x i8>, ptr addrspace(1) %px, align 16
  %i8e = extractelement <16 x i8> %i8l, i32 5
  %i8s = sext i8 %i8e to i16
  %i8m = mul i16 %i8s, 3
  store i16 %i8m, ptr addrspace(1) %p2
  %mulh = zext i64 %q to i128
  %mul2 = mul i128 %mulh, %mulh
  %mul3 = lshr i128 %mul2, 64
  %mul4 = trunc i128 %mul3 to i64
  %mul5 = udiv i64 %mul4, 10
  store i64 %mul5, ptr addrspace(1) %p3
  call void @llvm.memcpy.p1.p1.i64(ptr addrspace(1) %p3, ptr addrspace(1) %x, i64 %q, i1 0)
  call void @llvm.memset.p1.i64(ptr addrspace(1) %p2, i8 0, i64 64, i1 0)
  ret void
}

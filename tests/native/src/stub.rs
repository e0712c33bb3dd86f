//! The code around the instruction, by hand: there is little of it.

use crate::arena::STATE;
use std::mem::offset_of;

/// Where a run ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exits {
    /// After the instruction: takes the registers, then returns.
    pub done: u64,
    /// After a fault, whose handler has taken the general-purpose registers and flags.
    pub fault: u64,
}

/// The code for an arena at `base`, below 4 GiB, so that the state has 32-bit addresses.
pub(crate) fn assemble(base: u64) -> (Vec<u8>, Exits) {
    let state = u32::try_from(base + STATE as u64).expect("MAP_32BIT");
    assert!(state < 1 << 31, "32-bit addresses are sign-extended");
    let field = |offset: usize| (state + offset as u32).to_le_bytes();
    let gpr = |n: u8| field(usize::from(n) * 8);
    let rflags = field(offset_of!(crate::State, rflags));
    let host_rsp = field(offset_of!(crate::State, host_rsp));
    let vector = |n: u8| field(offset_of!(crate::State, vectors) + usize::from(n) * 32);
    let avx = std::arch::is_x86_feature_detected!("avx");

    let mut code = Vec::new();
    // A register and an absolute 32-bit address: ModRM with SIB 25h.
    let move_gpr = |code: &mut Vec<u8>, opcode: u8, n: u8| {
        code.extend([0x48 | n >> 3 << 2, opcode, 0x04 | (n & 7) << 3, 0x25]);
        code.extend(gpr(n));
    };
    let move_vector = |code: &mut Vec<u8>, store: bool, n: u8| {
        let (r, modrm) = (n >> 3, 0x04 | (n & 7) << 3);
        let opcode = if store { 0x7F } else { 0x6F };
        if avx {
            // VMOVDQU ymm
            code.extend([0xC5, 0x7E | (r ^ 1) << 7, opcode, modrm, 0x25]);
        } else {
            // MOVDQU xmm
            code.extend([0xF3, 0x40 | r << 2, 0x0F, opcode, modrm, 0x25]);
        }
        code.extend(vector(n));
    };
    const SAVED: [&[u8]; 6] = [
        &[0x53],
        &[0x55],
        &[0x41, 0x54],
        &[0x41, 0x55],
        &[0x41, 0x56],
        &[0x41, 0x57],
    ];
    // PUSH RBX RBP R12 to R15; MOV [host_rsp], RSP
    SAVED.iter().for_each(|push| code.extend(*push));
    code.extend([0x48, 0x89, 0x24, 0x25]);
    code.extend(host_rsp);
    (0..16).for_each(|n| move_vector(&mut code, false, n));
    // PUSH [rflags]; POPFQ
    code.extend([0xFF, 0x34, 0x25]);
    code.extend(rflags);
    code.push(0x9D);
    (0..16).for_each(|n| move_gpr(&mut code, 0x8B, n));
    // JMP rel32 to the code page, which begins one page behind the state.
    let next = base + code.len() as u64 + 5;
    let target = u64::from(state) + 4096;
    code.push(0xE9);
    code.extend(((target - next) as u32).to_le_bytes());

    let done = base + code.len() as u64;
    (0..16).for_each(|n| move_gpr(&mut code, 0x89, n));
    // MOV RSP, [host_rsp]; PUSHFQ; POP [rflags]
    let own_stack = |code: &mut Vec<u8>| {
        code.extend([0x48, 0x8B, 0x24, 0x25]);
        code.extend(host_rsp);
    };
    own_stack(&mut code);
    code.push(0x9C);
    code.extend([0x8F, 0x04, 0x25]);
    code.extend(rflags);

    let fault = base + code.len() as u64;
    own_stack(&mut code);
    (0..16).for_each(|n| move_vector(&mut code, true, n));
    if avx {
        code.extend([0xC5, 0xF8, 0x77]); // VZEROUPPER
    }
    // CLD, and the pushes undone; flags as a caller expects them.
    code.extend([0x6A, 0x02, 0x9D]);
    code.extend([
        0x41, 0x5F, 0x41, 0x5E, 0x41, 0x5D, 0x41, 0x5C, 0x5D, 0x5B, 0xC3,
    ]);
    (code, Exits { done, fault })
}

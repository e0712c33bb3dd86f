//! Results and flags, as the instructions' "Flags Affected" in SDM 2 say. Flags that the manual leaves
//! undefined are cleared or stay, whichever is simpler.

use super::cpu::{flag, mask};
use super::{Alu, BitOp, Scan, Shift, Unary};

/// Result and new flags of `a op b`, both of `size` bytes.
pub(crate) fn alu(op: Alu, a: u64, b: u64, size: u8, flags: u64) -> (u64, u64) {
    let (m, sign) = (mask(size), sign_bit(size));
    let (a, b) = (a & m, b & m);
    let carry_in = match op {
        Alu::Adc | Alu::Sbb => flags & flag::CF,
        _ => 0,
    };
    let (result, carry, overflow, adjust) = match op {
        Alu::And | Alu::Test => (a & b, false, false, false),
        Alu::Or => (a | b, false, false, false),
        Alu::Xor => (a ^ b, false, false, false),
        Alu::Add | Alu::Adc => {
            let wide = u128::from(a) + u128::from(b) + u128::from(carry_in);
            let r = wide as u64 & m;
            (
                r,
                wide > u128::from(m),
                !(a ^ b) & (a ^ r) & sign != 0,
                (a ^ b ^ r) & 0x10 != 0,
            )
        }
        Alu::Sub | Alu::Sbb | Alu::Cmp => {
            let r = a.wrapping_sub(b).wrapping_sub(carry_in) & m;
            let borrow = u128::from(a) < u128::from(b) + u128::from(carry_in);
            (
                r,
                borrow,
                (a ^ b) & (a ^ r) & sign != 0,
                (a ^ b ^ r) & 0x10 != 0,
            )
        }
    };
    let new = flags & !flag::ARITHMETIC
        | of_result(result, size)
        | when(carry, flag::CF)
        | when(adjust, flag::AF)
        | when(overflow, flag::OF);
    (result, new)
}

/// Result and new flags of an operation on one operand.
pub(crate) fn unary(op: Unary, a: u64, size: u8, flags: u64) -> (u64, u64) {
    match op {
        Unary::Not => (!a & mask(size), flags),
        Unary::Neg => alu(Alu::Sub, 0, a, size, flags),
        // INC and DEC leave the carry alone.
        Unary::Inc | Unary::Dec => {
            let plain = if op == Unary::Inc { Alu::Add } else { Alu::Sub };
            let (result, new) = alu(plain, a, 1, size, flags);
            (result, new & !flag::CF | flags & flag::CF)
        }
    }
}

/// Result and new flags of a shift or rotation by `count` bits.
pub(crate) fn shift(op: Shift, a: u64, count: u64, size: u8, flags: u64) -> (u64, u64) {
    let bits = u32::from(size) * 8;
    let count = (count & if size == 8 { 63 } else { 31 }) as u32;
    let a = a & mask(size);
    if count == 0 {
        return (a, flags);
    }
    let sign = sign_bit(size);
    let carry_in = flags & flag::CF;
    let (result, carry) = match op {
        Shift::RotateLeft => {
            let r = rotate_left(a, count % bits, bits) & mask(size);
            (r, r & 1 != 0)
        }
        Shift::RotateRight => {
            let r = rotate_left(a, bits - count % bits, bits) & mask(size);
            (r, r & sign != 0)
        }
        Shift::RotateLeftThroughCarry | Shift::RotateRightThroughCarry => {
            // The carry is one more bit, on top.
            let count = count % (bits + 1);
            let left = if op == Shift::RotateLeftThroughCarry {
                count
            } else {
                bits + 1 - count
            };
            let wide = u128::from(a) | u128::from(carry_in) << bits;
            let turned = wide << left | wide >> (bits + 1 - left);
            (turned as u64 & mask(size), turned >> bits & 1 != 0)
        }
        Shift::Left => {
            let wide = u128::from(a) << count;
            (wide as u64 & mask(size), wide >> bits & 1 != 0)
        }
        Shift::Right => (
            a.checked_shr(count).unwrap_or(0),
            a.checked_shr(count - 1).unwrap_or(0) & 1 != 0,
        ),
        Shift::RightSigned => {
            let signed = sign_extend(a, size) as i64;
            (
                (signed >> count.min(63)) as u64 & mask(size),
                signed >> (count - 1).min(63) & 1 != 0,
            )
        }
    };
    // Defined for a shift by one bit only; the same formula is used for all.
    let overflow = match op {
        Shift::RotateLeft | Shift::RotateLeftThroughCarry | Shift::Left => {
            (result & sign != 0) != carry
        }
        Shift::RotateRight | Shift::RotateRightThroughCarry => {
            (result & sign != 0) != (result & sign >> 1 != 0)
        }
        Shift::Right => a & sign != 0,
        Shift::RightSigned => false,
    };
    let both = when(carry, flag::CF) | when(overflow, flag::OF);
    let new = match op {
        Shift::Left | Shift::Right | Shift::RightSigned => {
            flags & !flag::ARITHMETIC | of_result(result, size) | both
        }
        _ => flags & !(flag::CF | flag::OF) | both,
    };
    (result, new)
}

/// SHLD and SHRD: `a` shifted by `count`, filled from `with`.
pub(crate) fn double_shift(
    op: Shift,
    a: u64,
    with: u64,
    count: u64,
    size: u8,
    flags: u64,
) -> (u64, u64) {
    let bits = u32::from(size) * 8;
    let count = (count & if size == 8 { 63 } else { 31 }) as u32;
    let (a, with) = (a & mask(size), with & mask(size));
    // Of a word by more than 16 bits the result is undefined; it stays as it is.
    if count == 0 || count > bits {
        return (a, flags);
    }
    let (result, carry) = if op == Shift::Left {
        let pair = u128::from(a) << bits | u128::from(with);
        let turned = pair << count;
        (
            (turned >> bits) as u64 & mask(size),
            a >> (bits - count) & 1 != 0,
        )
    } else {
        let pair = u128::from(with) << bits | u128::from(a);
        (
            (pair >> count) as u64 & mask(size),
            a >> (count - 1) & 1 != 0,
        )
    };
    let overflow = (a ^ result) & sign_bit(size) != 0;
    let new = flags & !flag::ARITHMETIC
        | of_result(result, size)
        | when(carry, flag::CF)
        | when(overflow, flag::OF);
    (result, new)
}

/// The word with bit `index % (8 * size)` changed, and new flags.
pub(crate) fn bit(op: BitOp, a: u64, index: u64, size: u8, flags: u64) -> (u64, u64) {
    let one = 1u64 << (index % (8 * u64::from(size)));
    let result = match op {
        BitOp::Test => a,
        BitOp::Set => a | one,
        BitOp::Reset => a & !one,
        BitOp::Complement => a ^ one,
    };
    (result, flags & !flag::CF | when(a & one != 0, flag::CF))
}

/// The result, unless there is none and the register keeps its value, and new flags.
pub(crate) fn scan(op: Scan, a: u64, size: u8, flags: u64) -> (Option<u64>, u64) {
    let a = a & mask(size);
    let zero = when(a == 0, flag::ZF);
    match op {
        Scan::Count => (
            Some(a.count_ones().into()),
            flags & !flag::ARITHMETIC | zero,
        ),
        Scan::Forward | Scan::Reverse => {
            let found = (a != 0).then(|| match op {
                Scan::Forward => u64::from(a.trailing_zeros()),
                _ => u64::from(63 - a.leading_zeros()),
            });
            (found, flags & !flag::ZF | zero)
        }
    }
}

/// Both halves of a product, low first, and new flags: CF and OF say that the high half counts.
pub(crate) fn multiply(a: u64, b: u64, size: u8, signed: bool, flags: u64) -> (u64, u64, u64) {
    let bits = u32::from(size) * 8;
    let (low, high, wide) = if signed {
        let product = i128::from(sign_extend(a & mask(size), size) as i64)
            * i128::from(sign_extend(b & mask(size), size) as i64);
        let low = product as u64 & mask(size);
        let fits = i128::from(sign_extend(low, size) as i64) == product;
        (low, (product >> bits) as u64 & mask(size), !fits)
    } else {
        let product = u128::from(a & mask(size)) * u128::from(b & mask(size));
        let high = (product >> bits) as u64 & mask(size);
        (product as u64 & mask(size), high, high != 0)
    };
    let new = flags & !(flag::CF | flag::OF) | when(wide, flag::CF | flag::OF);
    (low, high, new)
}

/// Quotient and remainder of a dividend in two halves, low first; `None` where the processor raises #DE: of zero, and
/// of a quotient that has no room (SDM 2A, DIV, IDIV). The flags are undefined, so they stay.
pub(crate) fn divide(
    [low, high]: [u64; 2],
    divisor: u64,
    size: u8,
    signed: bool,
) -> Option<(u64, u64)> {
    let bits = u32::from(size) * 8;
    let dividend = u128::from(high & mask(size)) << bits | u128::from(low & mask(size));
    if signed {
        let unused = 128 - 2 * bits;
        let dividend = (dividend << unused) as i128 >> unused;
        let divisor = i128::from(sign_extend(divisor & mask(size), size) as i64);
        let quotient = dividend.checked_div(divisor)?;
        let fits = i128::from(sign_extend(quotient as u64 & mask(size), size) as i64) == quotient;
        let remainder = dividend.checked_rem(divisor)?;
        return fits.then_some((quotient as u64, remainder as u64));
    }
    let divisor = u128::from(divisor & mask(size));
    let quotient = dividend.checked_div(divisor)?;
    let remainder = dividend.checked_rem(divisor)?;
    (quotient <= u128::from(mask(size))).then_some((quotient as u64, remainder as u64))
}

/// The value of `size` bytes with copies of its sign above.
pub(crate) const fn sign_extend(value: u64, size: u8) -> u64 {
    match size {
        1 => value as i8 as u64,
        2 => value as i16 as u64,
        4 => value as i32 as u64,
        _ => value,
    }
}

const fn rotate_left(a: u64, count: u32, bits: u32) -> u64 {
    if count == 0 || count == bits {
        a
    } else {
        a << count | a >> (bits - count)
    }
}

const fn sign_bit(size: u8) -> u64 {
    1 << (size as u32 * 8 - 1)
}

/// ZF, SF and PF.
fn of_result(result: u64, size: u8) -> u64 {
    when((result as u8).count_ones().is_multiple_of(2), flag::PF)
        | when(result == 0, flag::ZF)
        | when(result & sign_bit(size) != 0, flag::SF)
}

const fn when(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}

//! Keys by the names and numbers of the monitor, as Linux input event codes (`linux/input-event-codes.h`).

use lockstep_hw::core::Key;

/// QAPI's names with the codes of Linux.
#[rustfmt::skip]
static NAMES: &[(&str, u16)] = &[
    ("esc", 1), ("1", 2), ("2", 3), ("3", 4), ("4", 5), ("5", 6), ("6", 7), ("7", 8), ("8", 9), ("9", 10), ("0", 11),
    ("minus", 12), ("equal", 13), ("backspace", 14), ("tab", 15), ("q", 16), ("w", 17), ("e", 18), ("r", 19), ("t", 20),
    ("y", 21), ("u", 22), ("i", 23), ("o", 24), ("p", 25), ("bracket_left", 26), ("bracket_right", 27), ("ret", 28),
    ("ctrl", 29), ("a", 30), ("s", 31), ("d", 32), ("f", 33), ("g", 34), ("h", 35), ("j", 36), ("k", 37), ("l", 38),
    ("semicolon", 39), ("apostrophe", 40), ("grave_accent", 41), ("shift", 42), ("backslash", 43), ("z", 44), ("x", 45),
    ("c", 46), ("v", 47), ("b", 48), ("n", 49), ("m", 50), ("comma", 51), ("dot", 52), ("slash", 53), ("shift_r", 54),
    ("asterisk", 55), ("kp_multiply", 55), ("alt", 56), ("spc", 57), ("caps_lock", 58), ("f1", 59), ("f2", 60), ("f3", 61),
    ("f4", 62), ("f5", 63), ("f6", 64), ("f7", 65), ("f8", 66), ("f9", 67), ("f10", 68), ("num_lock", 69),
    ("scroll_lock", 70), ("kp_7", 71), ("kp_8", 72), ("kp_9", 73), ("kp_subtract", 74), ("kp_4", 75), ("kp_5", 76),
    ("kp_6", 77), ("kp_add", 78), ("kp_1", 79), ("kp_2", 80), ("kp_3", 81), ("kp_0", 82), ("kp_decimal", 83), ("less", 86),
    ("f11", 87), ("f12", 88), ("ro", 89), ("hiragana", 91), ("henkan", 92), ("katakanahiragana", 93), ("muhenkan", 94),
    ("kp_enter", 96), ("ctrl_r", 97), ("kp_divide", 98), ("print", 99), ("sysrq", 99), ("alt_r", 100), ("lf", 101),
    ("home", 102), ("up", 103), ("pgup", 104), ("left", 105), ("right", 106), ("end", 107), ("down", 108), ("pgdn", 109),
    ("insert", 110), ("delete", 111), ("audiomute", 113), ("volumedown", 114), ("volumeup", 115), ("power", 116),
    ("kp_equals", 117), ("pause", 119), ("kp_comma", 121), ("lang1", 122), ("lang2", 123), ("yen", 124), ("meta_l", 125),
    ("meta_r", 126), ("compose", 127), ("stop", 128), ("again", 129), ("props", 130), ("undo", 131), ("front", 132),
    ("copy", 133), ("open", 134), ("paste", 135), ("find", 136), ("cut", 137), ("help", 138), ("menu", 127),
    ("calculator", 140), ("sleep", 142), ("wake", 143), ("mail", 155), ("ac_bookmarks", 156), ("computer", 157),
    ("ac_back", 158), ("ac_forward", 159), ("audionext", 163), ("audioplay", 164), ("audioprev", 165), ("audiostop", 166),
    ("ac_home", 172), ("ac_refresh", 173), ("f13", 183), ("f14", 184), ("f15", 185), ("f16", 186), ("f17", 187),
    ("f18", 188), ("f19", 189), ("f20", 190), ("f21", 191), ("f22", 192), ("f23", 193), ("f24", 194), ("mediaselect", 226),
];

/// Numbers of keys after `e0` (set 1, with bit 7) that are not the same code in Linux.
#[rustfmt::skip]
static EXTENDED: &[(u8, u16)] = &[
    (0x1c, 96), (0x1d, 97), (0x20, 113), (0x2e, 114), (0x30, 115), (0x35, 98), (0x37, 99), (0x38, 100), (0x46, 119),
    (0x47, 102), (0x48, 103), (0x49, 104), (0x4b, 105), (0x4d, 106), (0x4f, 107), (0x50, 108), (0x51, 109), (0x52, 110),
    (0x53, 111), (0x5b, 125), (0x5c, 126), (0x5d, 127), (0x5e, 116), (0x5f, 142), (0x63, 143), (0x10, 165), (0x19, 163),
    (0x22, 164), (0x24, 166), (0x21, 140), (0x65, 217), (0x66, 156), (0x67, 173), (0x6a, 158), (0x69, 159), (0x32, 172),
    (0x6c, 155), (0x6b, 157),
];
/// Numbers without prefix above the range that Linux took over as it was.
static JAPANESE: &[(u8, u16)] = &[(0x70, 93), (0x73, 89), (0x77, 91), (0x79, 92), (0x7b, 94), (0x7d, 124), (0x7e, 121)];

fn lookup<K: PartialEq>(table: &[(K, u16)], key: K) -> Option<Key> {
    table.iter().find(|(k, _)| *k == key).map(|(_, code)| Key(*code))
}

/// The key of a QAPI name.
pub(crate) fn of_name(name: &str) -> Option<Key> {
    lookup(NAMES, name)
}

/// The key of a number: its code of set 1, with bit 7 for those after `e0`.
pub(crate) fn of_number(number: i64) -> Option<Key> {
    let number = u8::try_from(number).ok()?;
    match number {
        1..=0x53 | 0x56..=0x58 => Some(Key(number.into())),
        0x80.. => lookup(EXTENDED, number & 0x7f),
        _ => lookup(JAPANESE, number),
    }
}

#[cfg(test)]
mod tests {
    use lockstep_qapi::schema::QKeyCode;

    use super::*;

    #[test]
    fn names_are_the_schemas() {
        for (name, _) in NAMES {
            assert!(QKeyCode::from_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn names_and_numbers_agree() {
        for (name, number) in [("a", 0x1e), ("ret", 0x1c), ("kp_enter", 0x9c), ("ctrl_r", 0x9d), ("delete", 0xd3)] {
            assert_eq!(of_name(name), of_number(number), "{name}");
        }
        assert_eq!(of_number(0), None);
        assert_eq!(of_number(-1), None);
        assert_eq!(of_name("unmapped"), None);
    }
}

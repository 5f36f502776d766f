//! Keys by their X11 names (RFC 6143, 7.5.4; `X11/keysymdef.h`), on a keyboard with the American layout.

/// Keys that print, without and with shift, by Linux input event code.
#[rustfmt::skip]
const PRINTING: &[(u16, &str)] = &[
    (2, "1!"), (3, "2@"), (4, "3#"), (5, "4$"), (6, "5%"), (7, "6^"), (8, "7&"), (9, "8*"), (10, "9("), (11, "0)"),
    (12, "-_"), (13, "=+"), (16, "qQ"), (17, "wW"), (18, "eE"), (19, "rR"), (20, "tT"), (21, "yY"), (22, "uU"), (23, "iI"),
    (24, "oO"), (25, "pP"), (26, "[{"), (27, "]}"), (30, "aA"), (31, "sS"), (32, "dD"), (33, "fF"), (34, "gG"), (35, "hH"),
    (36, "jJ"), (37, "kK"), (38, "lL"), (39, ";:"), (40, "'\""), (41, "`~"), (43, "\\|"), (44, "zZ"), (45, "xX"),
    (46, "cC"), (47, "vV"), (48, "bB"), (49, "nN"), (50, "mM"), (51, ",<"), (52, ".>"), (53, "/?"), (57, " "),
];

/// The others.
#[rustfmt::skip]
const OTHERS: &[(u32, u16)] = &[
    (0xff08, 14), (0xff09, 15), (0xfe20, 15), (0xff0d, 28), (0xff13, 119), (0xff14, 70), (0xff15, 99), (0xff1b, 1),
    (0xff50, 102), (0xff51, 105), (0xff52, 103), (0xff53, 106), (0xff54, 108), (0xff55, 104), (0xff56, 109), (0xff57, 107),
    (0xff61, 99), (0xff63, 110), (0xff67, 127), (0xff6b, 119), (0xff7e, 100), (0xff7f, 69),
    (0xff8d, 96), (0xff95, 71), (0xff96, 75), (0xff97, 72), (0xff98, 77), (0xff99, 80), (0xff9a, 73), (0xff9b, 81),
    (0xff9c, 79), (0xff9d, 76), (0xff9e, 82), (0xff9f, 83), (0xffaa, 55), (0xffab, 78), (0xffac, 83), (0xffad, 74),
    (0xffae, 83), (0xffaf, 98), (0xffb0, 82), (0xffb1, 79), (0xffb2, 80), (0xffb3, 81), (0xffb4, 75), (0xffb5, 76),
    (0xffb6, 77), (0xffb7, 71), (0xffb8, 72), (0xffb9, 73), (0xffbd, 117),
    (0xffbe, 59), (0xffbf, 60), (0xffc0, 61), (0xffc1, 62), (0xffc2, 63), (0xffc3, 64), (0xffc4, 65), (0xffc5, 66),
    (0xffc6, 67), (0xffc7, 68), (0xffc8, 87), (0xffc9, 88),
    (0xffe1, 42), (0xffe2, 54), (0xffe3, 29), (0xffe4, 97), (0xffe5, 58), (0xffe7, 125), (0xffe8, 126), (0xffe9, 56),
    (0xffea, 100), (0xffeb, 125), (0xffec, 126), (0xfe03, 100), (0xffff, 111),
];

/// The key's Linux input event code; nothing for keys that such a keyboard has not.
pub fn code(keysym: u32) -> Option<u16> {
    let printing = || {
        let wanted = char::from_u32(keysym).filter(char::is_ascii_graphic).or((keysym == 0x20).then_some(' '))?;
        PRINTING.iter().find(|(_, chars)| chars.contains(wanted)).map(|(code, _)| *code)
    };
    printing().or_else(|| OTHERS.iter().find(|(sym, _)| *sym == keysym).map(|(_, code)| *code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_of_the_layout_has_a_key() {
        for c in ' '..='~' {
            assert!(code(c.into()).is_some(), "{c}");
        }
        assert_eq!(
            (code('a'.into()), code('A'.into()), code(0xff0d), code(0xffff)),
            (Some(30), Some(30), Some(28), Some(111))
        );
        assert_eq!((code(0), code(0xd800), code(u32::MAX)), (None, None, None));
    }
}

//! What users are told of the types of objects.

/// A type of object that users can make.
pub struct ObjectTypeHelp {
    /// Its name.
    pub name: &'static str,
    /// Its ancestors but for `object`, nearest first.
    pub parents: &'static [&'static str],
    /// Its properties that all its objects have, sorted by name, with their types.
    pub class_properties: &'static [(&'static str, &'static str)],
}

const NETFILTER: &[&str] = &["netfilter"];

/// The types of objects that there are, sorted by name.
pub static TYPE_HELP: &[ObjectTypeHelp] = &[
    // The properties of colo-compare belong to each object.
    ObjectTypeHelp { name: "colo-compare", parents: &[], class_properties: &[] },
    ObjectTypeHelp {
        name: "filter-buffer",
        parents: NETFILTER,
        class_properties: &[
            ("insert", "string"),
            ("interval", "uint32"),
            ("netdev", "string"),
            ("position", "string"),
            ("queue", "NetFilterDirection"),
            ("status", "string"),
        ],
    },
    ObjectTypeHelp {
        name: "filter-dump",
        parents: NETFILTER,
        class_properties: &[
            ("file", "string"),
            ("insert", "string"),
            ("maxlen", "uint32"),
            ("netdev", "string"),
            ("position", "string"),
            ("queue", "NetFilterDirection"),
            ("status", "string"),
        ],
    },
    ObjectTypeHelp {
        name: "filter-mirror",
        parents: NETFILTER,
        class_properties: &[
            ("insert", "string"),
            ("netdev", "string"),
            ("outdev", "string"),
            ("position", "string"),
            ("queue", "NetFilterDirection"),
            ("status", "string"),
            ("vnet_hdr_support", "bool"),
        ],
    },
    ObjectTypeHelp {
        name: "filter-redirector",
        parents: NETFILTER,
        class_properties: &[
            ("indev", "string"),
            ("insert", "string"),
            ("netdev", "string"),
            ("outdev", "string"),
            ("position", "string"),
            ("queue", "NetFilterDirection"),
            ("status", "string"),
            ("vnet_hdr_support", "bool"),
        ],
    },
    ObjectTypeHelp {
        name: "filter-rewriter",
        parents: NETFILTER,
        class_properties: &[
            ("insert", "string"),
            ("netdev", "string"),
            ("position", "string"),
            ("queue", "NetFilterDirection"),
            ("status", "string"),
            ("vnet_hdr_support", "bool"),
        ],
    },
    ObjectTypeHelp { name: "iothread", parents: &["event-loop-base"], class_properties: &[] },
    ObjectTypeHelp { name: "throttle-group", parents: &[], class_properties: &[("limits", "ThrottleLimits")] },
];

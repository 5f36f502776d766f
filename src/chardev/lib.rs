//! chardev

//! Displays: the standard VGA, and pictures of what it shows.

mod image;
pub mod vga;

pub use image::Image;

/// The types of devices of this module.
pub const TYPES: &[&crate::core::DeviceType] = &[&vga::VGA];

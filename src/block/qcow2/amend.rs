//! Changing what an image was created with: version, lazy refcounts, backing file, length.

use super::header::{Header, compatible, extension};
use super::map::Kind;
use super::{Qcow2, Runtime};
use crate::driver::Preallocation;
use lockstep_util::{Result, ResultExt, bail};
use std::io;

/// What shall be different; `None` leaves things as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AmendOptions {
    /// 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub version: Option<u32>,
    /// Refcount updates may be postponed.
    pub lazy_refcounts: Option<bool>,
    /// Virtual length in bytes.
    pub size: Option<u64>,
    /// Width of a refcount in bits; only what the image has already.
    pub refcount_bits: Option<u64>,
    /// Backing file, empty for none.
    pub backing_file: Option<String>,
    /// Its format.
    pub backing_format: Option<String>,
}

impl Qcow2 {
    /// Makes the changes, each stable before the next.
    pub async fn amend(&self, options: &AmendOptions) -> Result<()> {
        self.check_not_corrupt()?;
        let (version, bits) = {
            let header = self.header.borrow();
            (header.version, 1u64 << header.refcount_order)
        };
        let target = options.version.unwrap_or(version);
        if let Some(wanted) = options.refcount_bits.filter(|b| *b != bits) {
            if !wanted.is_power_of_two() || wanted > 64 {
                bail!("Refcount width must be a power of two and may not exceed 64 bits");
            }
            if target < 3 {
                bail!(
                    "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or \
                     greater)"
                );
            }
            bail!("Changing the width of refcounts from {bits} to {wanted} bits is not supported");
        }
        if target > version {
            self.upgrade().await?;
        }
        if options.backing_file.is_some() || options.backing_format.is_some() {
            let (file, format) = {
                let header = self.header.borrow();
                (header.backing_file.clone(), header.backing_format())
            };
            let file = options.backing_file.clone().unwrap_or(file);
            let format = options.backing_format.clone().or(format).filter(|_| !file.is_empty());
            self.change_backing(Some(file.as_str()).filter(|f| !f.is_empty()), format.as_deref()).await?;
        }
        if let Some(lazy) = options.lazy_refcounts {
            self.set_lazy_refcounts(lazy, target).await?;
        }
        if let Some(size) = options.size {
            self.resize(size, false, Preallocation::Off).await?;
        }
        if target < version {
            self.downgrade().await?;
        }
        Ok(())
    }

    async fn upgrade(&self) -> Result<()> {
        self.update_header(|h| {
            h.version = 3;
            h.set_extension(extension::FEATURE_NAMES, Some(Header::feature_name_table()));
        })
        .await
        .context("Failed to change the compatibility level")
    }

    async fn set_lazy_refcounts(&self, lazy: bool, target: u32) -> Result<()> {
        let now = self.header.borrow().compatible & compatible::LAZY_REFCOUNTS != 0;
        if lazy && target < 3 {
            bail!("Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)");
        }
        if lazy == now {
            return Ok(());
        }
        // All refcounts are right before and after.
        self.mark_clean().await.context("Failed to make the image clean")?;
        self.update_header(|h| h.compatible ^= compatible::LAZY_REFCOUNTS).await.context(if lazy {
            "Failed to enable lazy refcounts"
        } else {
            "Failed to disable lazy refcounts"
        })?;
        let runtime = self.runtime.get();
        self.runtime.set(Runtime { lazy_refcounts: lazy, ..runtime });
        Ok(())
    }

    async fn downgrade(&self) -> Result<()> {
        {
            let header = self.header.borrow();
            if header.refcount_order != 4 {
                bail!("compat=0.10 requires refcount_bits=16");
            }
            if header.snapshot_count > 0 {
                bail!("Cannot downgrade an image with internal snapshots");
            }
        }
        self.set_lazy_refcounts(false, 2).await?;
        let incompatible = self.header.borrow().incompatible;
        if incompatible != 0 {
            bail!("Cannot downgrade an image with incompatible features {incompatible:#x} set");
        }
        self.expand_zero_clusters().await.context("Failed to turn zero into data clusters")?;
        let _meta = self.meta.lock().await;
        self.flush_locked().await.context("Failed to flush the image")?;
        self.update_header(|h| {
            h.version = 2;
            h.compatible = 0;
            h.autoclear = 0;
            h.unknown_fields.clear();
            h.set_extension(extension::FEATURE_NAMES, None);
        })
        .await
        .context("Failed to change the compatibility level")
    }

    /// Version 2 has no zero clusters: what hides a backing file becomes data, anything else unallocated.
    async fn expand_zero_clusters(&self) -> io::Result<()> {
        let size = self.cluster_size();
        let end = self.size().next_multiple_of(size);
        let zeroes = vec![0; size as usize];
        let mut at = 0;
        while at < end {
            let run = self.lookup(at, end - at).await?;
            if matches!(run.kind, Kind::Zero { .. }) {
                if self.backing().is_none() {
                    self.drop_guest(at, at + run.len).await?;
                } else {
                    for cluster in (at..at + run.len).step_by(size as usize) {
                        self.write_guest(cluster, &zeroes).await?;
                    }
                }
            }
            at += run.len;
        }
        Ok(())
    }
}

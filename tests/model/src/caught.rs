//! A protocol with a step broken, which must be noticed.

/// What the first order said that failed, of those that `explore` tries; None if none did.
pub fn first_failure(explore: impl FnOnce()) -> Option<String> {
    let run = std::panic::AssertUnwindSafe(explore);
    let panic = std::panic::catch_unwind(run).err()?;
    let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    Some(text + panic.downcast_ref::<&str>().unwrap_or(&""))
}

/// That some order uses a translation which should be gone, and says so.
///
/// # Panics
/// No order fails, or the first failure is another one.
pub fn is_stale(explore: impl FnOnce()) {
    let text = first_failure(explore).expect("the defect is caught");
    let freed = text.contains("is used after it was freed");
    assert!(
        freed || text.contains("a stale translation after a completed flush"),
        "{text}"
    );
}

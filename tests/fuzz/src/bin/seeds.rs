//! Writes the seeds into the corpora.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for seed in fuzz::seeds::all() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(seed.target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(seed.name), seed.bytes)?;
    }
    Ok(())
}

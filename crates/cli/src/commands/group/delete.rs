//! `tidelog group delete`.

use tidelog_client::Client;

use super::hinted;
use crate::commands::confirm::confirm;
use crate::failure::Failure;
use crate::output::numbers::counted;

#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// The group.
    #[arg(value_name = "GROUP")]
    group: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Show what would be deleted, change nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(client: &Client, args: &DeleteArgs) -> Result<(), Failure> {
    let group = client.group(&args.group);
    let described = group.describe().await.map_err(|e| hinted(e.into()))?;
    let offsets = counted(described.offsets.len() as u64, "committed offset");
    if args.dry_run {
        say!("group {} with {offsets} would be deleted", args.group);
        return Ok(());
    }
    let what = format!("deletes group {} with {offsets}", args.group);
    confirm(&what, &args.group, args.yes)?;
    group.delete().await?;
    say!("deleted group {} with {offsets}", args.group);
    Ok(())
}

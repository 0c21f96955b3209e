"""What every room may know: errors, identifiers, labels, filters, references, platforms, handlers."""

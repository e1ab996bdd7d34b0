//! The lead writes this file on main. Do not write it here; see NOTE-FROM-LEAD.md

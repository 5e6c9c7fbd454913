// Package subnet holds the values of the domain: the network's [Config], the
// [Lease] by which a node holds its pod subnet, the record that carries a lease
// in the store, and the rules by which subnets are chosen and claimed.
//
// Everything here is pure but [Claim], which talks to a [Store]. Records are
// byte-compatible with flannel's in both directions.
package subnet

// Package subnettest holds an in-memory [subnet.Store] and the suite that every
// Store passes.
package subnettest

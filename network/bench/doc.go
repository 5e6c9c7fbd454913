// Package bench measures a real ripstopd as the number of peers grows, beside
// what the kernel takes for the same entries by themselves, and writes down what
// it found.
//
// The daemon is a child process on a host of a [lab.Lab], with a real etcd, a
// real kernel and peers that are records alone. What a change costs is told by
// the kernel's own announcements.
package bench

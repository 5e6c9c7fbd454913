//go:build race

package doctor_test

// slower is by how much the race detector slows down what is measured.
const slower = 5

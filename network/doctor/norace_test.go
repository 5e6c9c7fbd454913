//go:build !race

package doctor_test

const slower = 1

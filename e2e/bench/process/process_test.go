package process

import (
	"os"
	"testing"
	"time"
)

func TestThisProcess(t *testing.T) {
	self := []int{os.Getpid()}
	before, err := CPU(self)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; {
		now, err := CPU(self)
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			break
		}
		if time.Now().After(end) {
			t.Fatal("working for 30 s has used no processor time")
		}
	}
	if n, err := Memory(self); err != nil || n < 1<<20 {
		t.Errorf("Memory = %d, %v", n, err)
	}
	if _, err := CPU([]int{1 << 30}); err == nil {
		t.Error("CPU of no process is no error")
	}
	if _, err := Memory([]int{1 << 30}); err == nil {
		t.Error("Memory of no process is no error")
	}
}

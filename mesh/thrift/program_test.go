package thrift

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestProgram: pages of the program's file leave the process, and come again when they are used.
func TestProgram(t *testing.T) {
	before := fileBytes(t)
	if err := Program(); err != nil {
		t.Fatal(err)
	}
	after := fileBytes(t)
	if after >= before {
		t.Errorf("the process holds %d KiB of files, and held %d before", after, before)
	}
}

func TestParseMapping(t *testing.T) {
	for line, want := range map[string]mapping{
		"00400000-01058000 r-xp 00000000 fe:00 10920042                           /opt/a program (deleted)": {0x400000, 0x1058000, false, "/opt/a program (deleted)"},
		"02042000-02100000 rw-p 01c42000 fe:00 10920042                           /opt/x":                   {0x2042000, 0x2100000, true, "/opt/x"},
		"c000000000-c000400000 rw-p 00000000 00:00 0":                                                       {0xc000000000, 0xc000400000, true, ""},
		"7ffd1-7ffd2 r-xp 00000000 00:00 0                          [vdso]":                                 {0x7ffd1, 0x7ffd2, false, ""},
	} {
		if got, ok := parseMapping(line); !ok || got != want {
			t.Errorf("%q: %+v, %v, want %+v", line, got, ok, want)
		}
	}
	for _, line := range []string{"Anonymous:             0 kB", "VmFlags: rd ex mr mw me sd", "Size:               12640 kB", ""} {
		if got, ok := parseMapping(line); ok {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

// fileBytes is how much of files the process has in its memory, in KiB.
func fileBytes(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

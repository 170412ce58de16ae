package scale

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is built is in the cache's folder of the run, which the next run removes if this one is killed.
func TestBinariesGoWithTheRun(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("AMBIT_CACHE", cache)
	failed, built := errors.New("does not build"), ""
	_, err := Run(t.Context(), Config{Pods: minPods, Report: io.Discard, Build: func(_ context.Context, dir string) (Binaries, error) {
		built = dir
		return Binaries{}, errors.Join(failed, os.WriteFile(filepath.Join(dir, "half"), nil, 0o600))
	}})
	if !errors.Is(err, failed) || !strings.HasPrefix(built, filepath.Join(cache, "scale", unfinished)) {
		t.Errorf("built in %s, below %s: %v", built, cache, err)
	}
	if _, err := os.Stat(built); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was built is left: %v", err)
	}
}

func TestReadDump(t *testing.T) {
	const dump = `{"workloads": [
		{"uid": "a", "canonicalRevision": "7", "workloadIps": ["10.0.0.1"]},
		{"uid": "b", "locality": {}, "canonicalRevision": "latest"}
	], "services": [{"uid": "c"}]}`
	got, err := readDump(strings.NewReader(dump))
	if diff := cmp.Diff(map[string]string{"a": "7", "b": "latest"}, got); err != nil || diff != "" {
		t.Errorf("workloads (-want +got): %v\n%s", err, diff)
	}
	for name, text := range map[string]string{"cut short": dump[:60], "none": `{"services": []}`, "nothing": ""} {
		if got, err := readDump(strings.NewReader(text)); err == nil {
			t.Errorf("%s: got %v, want an error", name, got)
		}
	}
}

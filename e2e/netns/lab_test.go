package netns

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/ambit-mesh/ambit/e2e/lab"
)

// TestLogsAreBounded runs something in place of a proxy that says the same for ever.
func TestLogsAreBounded(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: network namespaces need root")
	}
	const most = 1 << 20
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l, err := lab.New(ctx, lab.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), MaxLog: most})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n, err := l.AddOldNode("node1")
	if err != nil {
		t.Fatal(err)
	}
	talker := filepath.Join(t.TempDir(), "talker")
	if err := os.WriteFile(talker, []byte("#!/bin/sh\nexec yes\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := n.StartProxy(talker)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(ctx); !errors.Is(err, lab.ErrLogTooLong) {
		t.Errorf("it ended with %v, want %v", err, lab.ErrLogTooLong)
	}
	if info, err := os.Stat(p.Log); err != nil || info.Size() != most {
		t.Errorf("its log: %v, %v; want %d bytes", info.Size(), err, most)
	}
}

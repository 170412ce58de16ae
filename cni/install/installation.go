package install

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"
)

// again is after how long an Installer that failed is started anew.
const again = 10 * time.Second

// Installation is all of the plugin on a node: its binary and entry, and its credential.
type Installation struct {
	*Installer
	Credential Credential
}

// Run keeps all of it in place until the context ends, and leaves it there. It returns nil.
func (i Installation) Run(ctx context.Context) error {
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() { i.Credential.Run(ctx) })
	for ctx.Err() == nil {
		if err := i.Installer.Run(ctx); err != nil {
			i.cfg.Logger.Error("keep the plugin installed", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(again):
			}
		}
	}
	return nil
}

// Uninstall takes all of it away. The credential goes last: the plugin needs it while it is called.
func (i Installation) Uninstall() error {
	if err := i.Installer.Uninstall(); err != nil {
		return err
	}
	if err := os.Remove(i.Credential.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

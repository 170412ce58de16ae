package identity

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// KeyDir keeps SVIDs, keys included, in a folder that is root's alone and that is memory, so that a process which takes
// over from one that died can prove to be the same identities while the CA is away, and a machine that was without power
// cannot. Its methods may be called concurrently, by several processes, too.
type KeyDir struct {
	dir    string
	logger *slog.Logger
}

// keyFile is a file's content, in JSON. That it is whole and true is checked like what a CA returns.
type keyFile struct {
	Identity string `json:"identity"`
	Key      []byte `json:"key"`   // PKCS #8, DER
	Chain    string `json:"chain"` // PEM
	Roots    string `json:"roots"` // PEM
}

const keyFileSuffix = ".svid"

// OpenKeyDir makes the folder if need be. It is an error if the folder is not on a tmpfs or ramfs, or is not closed to all
// but its owner, who is the user of this process.
func OpenKeyDir(dir string, logger *slog.Logger) (*KeyDir, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("keep keys: %w", err)
	}
	// What is checked must be what is used, so no link is followed.
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("keep keys: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	var sfs unix.Statfs_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &st), unix.Fstatfs(int(f.Fd()), &sfs)); err != nil {
		return nil, fmt.Errorf("keep keys: %s: %w", dir, err)
	}
	if sfs.Type != unix.TMPFS_MAGIC && sfs.Type != unix.RAMFS_MAGIC {
		return nil, fmt.Errorf("keep keys: %s is on a file system of type %#x and not on a tmpfs: keys are not written to a disk", dir, sfs.Type)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return nil, fmt.Errorf("keep keys: %s has owner %d and mode %o, want %d and 700", dir, st.Uid, st.Mode&0o777, os.Geteuid())
	}
	return &KeyDir{dir: dir, logger: logger}, nil
}

func (k *KeyDir) path(id Identity) string {
	sum := sha256.Sum256([]byte(id.String()))
	return filepath.Join(k.dir, hex.EncodeToString(sum[:16])+keyFileSuffix)
}

// Load returns the SVID that was saved for id, nil if there is none that is good now.
func (k *KeyDir) Load(id Identity) *SVID {
	b, err := os.ReadFile(k.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var s *SVID
	if err == nil {
		s, err = parseKeyFile(id, b)
	}
	if err != nil {
		k.logger.Debug("certificate that was kept is not used", "identity", id.String(), "error", err)
		return nil
	}
	return s
}

func parseKeyFile(id Identity, b []byte) (*SVID, error) {
	var f keyFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	if f.Identity != id.String() {
		return nil, fmt.Errorf("it is of %q", f.Identity)
	}
	key, err := x509.ParsePKCS8PrivateKey(f.Key)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("its key is a %T", key)
	}
	return NewSVID(id, signer, []string{f.Chain, f.Roots})
}

// Save keeps an SVID in place of an older one of the same identity. A failure is logged: the SVID is as good without.
func (k *KeyDir) Save(s *SVID) {
	if err := k.save(s); err != nil {
		k.logger.Warn("certificate is not kept for the next process", "identity", s.Identity.String(), "error", err)
	}
}

func (k *KeyDir) save(s *SVID) error {
	key, err := x509.MarshalPKCS8PrivateKey(s.TLS.PrivateKey)
	if err != nil {
		return err
	}
	b, err := json.Marshal(keyFile{Identity: s.Identity.String(), Key: key, Chain: string(s.ChainPEM), Roots: string(s.RootsPEM)})
	if err != nil {
		return err
	}
	path := k.path(s.Identity)
	fresh := path + "." + rand.Text()[:8]
	if err := os.WriteFile(fresh, b, 0o600); err != nil {
		os.Remove(fresh)
		return err
	}
	return os.Rename(fresh, path)
}

// Sweep removes what was saved longer ago than age for identities that are not to be kept.
func (k *KeyDir) Sweep(keep []Identity, age time.Duration) error {
	kept := map[string]bool{}
	for _, id := range keep {
		kept[k.path(id)] = true
	}
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return fmt.Errorf("sweep keys: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(k.dir, e.Name())
		info, err := e.Info()
		if err != nil || kept[path] || time.Since(info.ModTime()) < age || !strings.Contains(e.Name(), keyFileSuffix) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

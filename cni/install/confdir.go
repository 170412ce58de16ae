package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/cni/agentapi"
)

// errNone says that the folder holds no valid configuration yet.
var errNone = errors.New("no valid CNI configuration yet")

// file is a CNI configuration as a list. Everything that is not ours stays as it was written, apart from white space.
type file struct {
	name    string // of the file that was read
	fields  map[string]json.RawMessage
	plugins []json.RawMessage
}

// defaultName and defaultVersion are given to a list made from a single configuration that has none.
const (
	defaultName    = "k8s-pod-network"
	defaultVersion = "0.3.1"
)

// parse reads a .conflist, or wraps a .conf or .json in a list.
func parse(name string, text []byte) (*file, error) {
	f := &file{name: name}
	if err := json.Unmarshal(text, &f.fields); err != nil {
		return nil, err
	}
	if filepath.Ext(name) != ".conflist" {
		var single struct{ Type string }
		if err := json.Unmarshal(text, &single); err != nil {
			return nil, err
		}
		if single.Type == "" {
			return nil, errors.New(`no "type"`)
		}
		list := map[string]json.RawMessage{"plugins": nil}
		for field, fallback := range map[string]string{"name": defaultName, "cniVersion": defaultVersion} {
			if list[field] = f.fields[field]; list[field] == nil {
				list[field] = json.RawMessage(`"` + fallback + `"`)
			}
		}
		f.fields, f.plugins = list, []json.RawMessage{text}
		return f, nil
	}
	if err := json.Unmarshal(f.fields["plugins"], &f.plugins); err != nil {
		return nil, fmt.Errorf(`"plugins": %w`, err)
	}
	if len(f.plugins) == 0 {
		return nil, errors.New(`no "plugins"`)
	}
	for _, p := range f.plugins {
		if typeOf(p) == "" {
			return nil, errors.New(`a plugin without "type"`)
		}
	}
	return f, nil
}

func typeOf(plugin json.RawMessage) string {
	var p struct{ Type string }
	if err := json.Unmarshal(plugin, &p); err != nil {
		return ""
	}
	return p.Type
}

// target is the name under which the list is written.
func (f *file) target() string { return strings.TrimSuffix(f.name, filepath.Ext(f.name)) + ".conflist" }

// entries are the plugin's entries that the list has.
func (f *file) entries(kind string) []json.RawMessage {
	return slices.DeleteFunc(slices.Clone(f.plugins), func(p json.RawMessage) bool { return typeOf(p) != kind })
}

// with returns the list with the entry as its last, in place of earlier ones of its type.
func (f *file) with(e agentapi.Entry) ([]byte, error) {
	ours, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	return f.render(append(f.others(e.Type), ours))
}

func (f *file) others(kind string) []json.RawMessage {
	return slices.DeleteFunc(slices.Clone(f.plugins), func(p json.RawMessage) bool { return typeOf(p) == kind })
}

func (f *file) render(plugins []json.RawMessage) ([]byte, error) {
	raw, err := json.Marshal(plugins)
	if err != nil {
		return nil, err
	}
	f.fields["plugins"] = raw
	text, err := json.Marshal(f.fields)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, text, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// has says whether the entry is there once, with the same content, behind another plugin.
func (f *file) has(e agentapi.Entry) bool {
	found := f.entries(e.Type)
	if filepath.Ext(f.name) != ".conflist" || len(found) != 1 || typeOf(f.plugins[0]) == e.Type {
		return false
	}
	ours, err := json.Marshal(e)
	if err != nil {
		return false
	}
	var a, b any
	return json.Unmarshal(ours, &a) == nil && json.Unmarshal(found[0], &b) == nil && reflect.DeepEqual(a, b)
}

// confFiles are the names in the folder that the runtime looks at, in its order.
func confFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out, nil
}

// first returns the configuration that the runtime takes: the first valid one.
func first(dir string, log *slog.Logger) (*file, error) {
	names, err := confFiles(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f, err := parse(name, text)
		if err != nil {
			log.Warn("CNI configuration is not valid and so passed over", "file", name, "error", err)
			continue
		}
		return f, nil
	}
	return nil, errNone
}

// ensureEntry puts the entry into the configuration that the runtime takes, and says whether it had to.
func ensureEntry(dir string, e agentapi.Entry, log *slog.Logger) (changed bool, err error) {
	f, err := first(dir, log)
	if err != nil {
		return false, err
	}
	if f.has(e) {
		return false, nil
	}
	if len(f.others(e.Type)) == 0 {
		return false, errNone // nothing but ourselves: the network's own plugin is not there yet
	}
	text, err := f.with(e)
	if err != nil {
		return false, fmt.Errorf("write CNI configuration %s: %w", f.target(), err)
	}
	mode := fs.FileMode(0o600)
	if st, err := os.Stat(filepath.Join(dir, f.name)); err == nil {
		mode = st.Mode().Perm()
	}
	if err := writeFile(filepath.Join(dir, f.target()), text, mode); err != nil {
		return false, err
	}
	if f.name != f.target() {
		return true, os.Remove(filepath.Join(dir, f.name))
	}
	return true, nil
}

// removeEntry takes the plugin out of every configuration.
func removeEntry(dir, kind string) error {
	names, err := confFiles(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		path := filepath.Join(dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		f, err := parse(name, text)
		if err != nil || len(f.entries(kind)) == 0 {
			continue // not one that we could have changed
		}
		st, err := os.Stat(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if text, err = f.render(f.others(kind)); err == nil {
			err = writeFile(path, text, st.Mode().Perm())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// writeFile replaces a file in one step. Until then the content is under a name that no runtime reads.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".ambit-*.tmp")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(tmp.Name()))
	}
	return nil
}

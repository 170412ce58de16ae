// Package teahouse is the sample application: a front that guests ask over HTTP, a menu behind it that it asks over HTTP, and
// a doorkeeper that it asks over a protocol in which the server speaks first. None of them knows of a mesh; each says whom it
// saw, so that the answer shows what the mesh did and did not change.
package teahouse

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ambit-mesh/ambit/deploy/samples/greeter"
	"github.com/ambit-mesh/ambit/deploy/samples/whoami"
)

// stepLimit bounds each question that the front asks.
const stepLimit = 5 * time.Second

// Secret is on the menu: a sentence that nobody else should read on the wire.
const Secret = "the-secret-ingredient-is-cardamom"

// Menu is the answer of the menu service.
type Menu struct {
	Teas   []string   `json:"teas"`
	Secret string     `json:"secret"`
	By     whoami.Who `json:"by"`
}

// MenuHandler serves the menu.
func MenuHandler(me whoami.Who) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		by := me
		by.Client = r.RemoteAddr
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(Menu{Teas: []string{"assam", "oolong", "rooibos"}, Secret: Secret, By: by})
	})
}

// Table is the answer of the front: what it learnt from the services behind it, and why not where it did not.
type Table struct {
	Front     whoami.Who `json:"front"`
	Menu      *Menu      `json:"menu,omitempty"`
	MenuError string     `json:"menuError,omitempty"`
	Door      string     `json:"door,omitempty"`
	DoorError string     `json:"doorError,omitempty"`
}

// Front asks the services behind it.
type Front struct {
	Me whoami.Who
	// MenuURL is the menu's URL, DoorAddr the doorkeeper's host:port.
	MenuURL  string
	DoorAddr string
	// Client makes the HTTP requests. It should not keep connections, so that every answer is of a new one.
	Client *http.Client
}

// ServeHTTP answers with a Table: 200 if both services answered, else 502.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	table := Table{Front: f.Me}
	table.Front.Client = r.RemoteAddr
	ctx, cancel := context.WithTimeout(r.Context(), stepLimit)
	defer cancel()
	if menu, err := f.askMenu(ctx); err != nil {
		table.MenuError = err.Error()
	} else {
		table.Menu = menu
	}
	if greeting, err := greeter.Ask(ctx, f.DoorAddr, "a table for two"); err != nil {
		table.DoorError = err.Error()
	} else {
		table.Door = greeting.Line
	}
	w.Header().Set("Content-Type", "application/json")
	if table.MenuError != "" || table.DoorError != "" {
		w.WriteHeader(http.StatusBadGateway)
	}
	_ = json.NewEncoder(w).Encode(table)
}

func (f *Front) askMenu(ctx context.Context) (*Menu, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.MenuURL, nil)
	if err != nil {
		return nil, err
	}
	resp, err := f.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	menu := new(Menu)
	if err := json.Unmarshal(body, menu); err != nil {
		return nil, fmt.Errorf("read the menu: %w", err)
	}
	return menu, nil
}

package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/rundir"
	"github.com/ripstop-net/ripstop/subnet"
)

// Paths of the API.
const (
	PathHealth   = "/healthz"
	PathReady    = "/readyz"
	PathMetrics  = "/metrics"
	PathStatus   = "/v1/status"
	PathPeers    = "/v1/peers"
	PathLogLevel = "/v1/log-level"
)

// LogLevel is the least level that is logged, as the API has it.
type LogLevel struct {
	Level string `json:"level"`
}

// Error is how the API says why it does not answer a question.
type Error struct {
	Error string `json:"error"`
}

// maxAnswer bounds an answer in bytes, far above what the largest page takes.
const maxAnswer = 16 << 20

// answerLimit bounds the wait for an answer.
const answerLimit = 10 * time.Second

// Client asks the daemon of this host. It is safe for concurrent use.
type Client struct {
	dir  string
	http *http.Client
}

// NewClient returns a client of the daemon with the given --run-dir.
func NewClient(runDir string) *Client {
	dial := func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
		err = SocketPath(runDir, SocketName, func(address string) error {
			conn, err = (&net.Dialer{}).DialContext(ctx, "unix", address)
			return err
		})
		return conn, err
	}
	return &Client{dir: runDir, http: &http.Client{
		Transport: &http.Transport{DialContext: dial, DisableCompression: true, MaxIdleConns: 1}, Timeout: answerLimit,
	}}
}

// Close lets go of the connection.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks for the status.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	if err = c.call(ctx, http.MethodGet, PathStatus, nil, &s); err == nil && s.Version > Version {
		err = fmt.Errorf("the daemon answers in version %d, this program reads %d: use the ripstop that came with it", s.Version, Version)
	}
	return s, err
}

// Process is the number of the daemon's process as it is seen from here, 0 where it
// cannot be seen. The kernel tells, also where the daemon does not answer.
func (c *Client) Process(ctx context.Context) (process int, err error) {
	err = SocketPath(c.dir, SocketName, func(address string) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		process, err = rundir.Owner(conn.(*net.UnixConn))
		return err
	})
	if err != nil {
		return 0, c.explain(ctx, err)
	}
	return max(process, 0), nil
}

// Peers asks for a page of peers.
func (c *Client) Peers(ctx context.Context, q Query) (p Page, err error) {
	return p, c.call(ctx, http.MethodGet, PathPeers+"?"+q.Values().Encode(), nil, &p)
}

// AllPeers asks page after page and gives each to each.
func (c *Client) AllPeers(ctx context.Context, q Query, each func(Page) error) error {
	for {
		page, err := c.Peers(ctx, q)
		if err != nil {
			return err
		}
		if err := each(page); err != nil || page.Continue == "" {
			return err
		}
		before := q.After
		if q.After, err = subnet.ParseKey(page.Continue); err != nil {
			return fmt.Errorf("read the daemon's answer: %w", err)
		}
		if q.After == before {
			return fmt.Errorf("read the daemon's answer: the page after %s is to be followed by itself", page.Continue)
		}
	}
}

// Level asks for the log level, SetLevel changes it.
func (c *Client) Level(ctx context.Context) (string, error) {
	var l LogLevel
	err := c.call(ctx, http.MethodGet, PathLogLevel, nil, &l)
	return l.Level, err
}

// SetLevel changes the log level.
func (c *Client) SetLevel(ctx context.Context, level string) (string, error) {
	l := LogLevel{level}
	err := c.call(ctx, http.MethodPut, PathLogLevel, l, &l)
	return l.Level, err
}

// Get asks for any path and returns the answer's status and text.
func (c *Client) Get(ctx context.Context, path string) (code int, body string, err error) {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, string(text), err
}

func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://ripstopd"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	return resp, nil
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var e Error
		if json.Unmarshal(text, &e) != nil || e.Error == "" {
			e.Error = strings.TrimSpace(string(text))
		}
		return fmt.Errorf("the daemon answers %d: %s", resp.StatusCode, e.Error)
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

// ErrNotRunning is wrapped by the errors of a client whose daemon does not run.
var ErrNotRunning = errors.New("no ripstopd runs here")

// explain says what to do about a daemon that cannot be asked.
func (c *Client) explain(ctx context.Context, err error) error {
	path := filepath.Join(c.dir, SocketName)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: there is no %s: start it, or give the --run-dir that it was started with", ErrNotRunning, path)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%s is no folder: give the --run-dir that ripstopd was started with", c.dir)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w: the one that answered at %s was killed or has crashed: start it again and look at its log", ErrNotRunning, path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s is root's alone: run this as root (sudo ripstop …)", path)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("ripstopd does not answer at %s: it may be stopped (SIGSTOP) or the host out of CPU", path)
	}
	return fmt.Errorf("ask ripstopd at %s: %w", path, err)
}

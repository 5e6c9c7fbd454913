package bench

import (
	"fmt"
	"image/color"
	"io"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// leastPlotted is the number of peers from which on a time says more than how
// long a process takes to start.
const leastPlotted = 100

// line is one line of the picture.
type line struct {
	name  string
	color color.Color
	dash  []vg.Length
	value func(Size) time.Duration
}

// Plot draws time against the number of peers as SVG: the daemon beside the
// kernel alone.
func (r Result) Plot(to io.Writer) error {
	p := plot.New()
	p.Title.Text = "Time until all peers' entries are in the kernel"
	p.X.Label.Text, p.Y.Label.Text = "peers", "seconds"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = true, true
	p.BackgroundColor = color.White
	p.Add(plotter.NewGrid())
	blue, grey, green := color.RGBA{0x1f, 0x6f, 0xb4, 0xff}, color.RGBA{0x70, 0x70, 0x70, 0xff}, color.RGBA{0x2c, 0x8c, 0x3c, 0xff}
	lines := []line{
		{"ripstopd, cold start", blue, nil, func(s Size) time.Duration { return s.Cold.Median() }},
		{"ripstopd, warm restart", green, nil, func(s Size) time.Duration { return s.Warm.Median() }},
	}
	for i, f := range r.Sizes[0].Floors {
		lines = append(lines, line{
			"the kernel alone: " + f.Tool, grey, []vg.Length{vg.Points(float64(2 + 4*i)), vg.Points(3)},
			func(s Size) time.Duration { return s.Floors[i].Add.Median() },
		})
	}
	lines = append(lines, line{
		"reading the list from etcd", color.RGBA{0xc0, 0x70, 0x10, 0xff}, []vg.Length{vg.Points(1), vg.Points(2)},
		func(s Size) time.Duration { return s.List.Median() },
	})
	for _, l := range lines {
		var points plotter.XYs
		for _, s := range r.Sizes {
			if at := l.value(s).Seconds(); at > 0 && s.Peers >= leastPlotted {
				points = append(points, plotter.XY{X: float64(s.Peers), Y: at})
			}
		}
		if len(points) == 0 {
			continue
		}
		drawn, marks, err := plotter.NewLinePoints(points)
		if err != nil {
			return fmt.Errorf("plot %s: %w", l.name, err)
		}
		drawn.Color, drawn.Width, drawn.Dashes = l.color, vg.Points(1.5), l.dash
		marks.Color, marks.Shape, marks.Radius = l.color, draw.CircleGlyph{}, vg.Points(2)
		p.Add(drawn, marks)
		p.Legend.Add(l.name, drawn)
	}
	// A logarithmic axis of one point, or of none, cannot be drawn.
	p.X.Min, p.X.Max = min(p.X.Min, leastPlotted), max(p.X.Max, 10*leastPlotted)
	if p.Y.Min >= p.Y.Max {
		p.Y.Min, p.Y.Max = 0.001, 1
	}
	canvas := vgsvg.New(18*vg.Centimeter, 11*vg.Centimeter)
	p.Draw(draw.New(canvas))
	if _, err := canvas.WriteTo(to); err != nil {
		return fmt.Errorf("write the picture: %w", err)
	}
	return nil
}
